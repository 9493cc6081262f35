// Sentences for what the user asked for and cannot have now.
import { window } from "vscode";
import { ErrorCodes, ResponseError } from "vscode-languageclient/node";

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
