// Commands of the server, and sentences for what the user asked for and cannot have now.
import { type CancellationToken, commands, window } from "vscode";
import { ErrorCodes, ExecuteCommandRequest, LSPErrorCodes, ResponseError } from "vscode-languageclient/node";
import type { Client } from "./client";

export function run<R>(client: Client, command: string, parameter?: object, token?: CancellationToken): Promise<R> {
  const params = { command, arguments: parameter ? [parameter] : [] };
  return client.sendRequest(ExecuteCommandRequest.type, params, token) as Promise<R>;
}

export function notUp(): void {
  window.showInformationMessage("fimls: The server is not running. A click on fimls in the status bar tells more.");
}

/** Whether the server does not know such a request; the user is then told so. */
export function unknownTo(error: unknown): boolean {
  const unknown = error instanceof ResponseError && error.code === ErrorCodes.MethodNotFound;
  if (unknown) {
    window.showInformationMessage("fimls: The server that is installed is too old for this.");
  }
  return unknown;
}

/** Whether the server says, in words for the user, why it does not do this. */
export function isRefusal(error: unknown): error is ResponseError<unknown> {
  return error instanceof ResponseError && error.code === LSPErrorCodes.RequestFailed;
}

export function tellFailure(error: unknown): void {
  if (unknownTo(error)) {
    return;
  }
  if (isRefusal(error)) {
    window.showInformationMessage(`fimls: ${error.message}`);
    return;
  }
  window
    .showWarningMessage("fimls: This did not work.", "Show Log")
    .then((choice) => choice && commands.executeCommand("fimls.showLog"));
}
