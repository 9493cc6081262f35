// One connection to one server process: vscode-languageclient, less its message windows, plus our capability.
import { homedir } from "node:os";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { type InlineCompletionItem, type InlineCompletionList, type LogOutputChannel, Uri } from "vscode";
import {
  type ClientCapabilities,
  CloseAction,
  DidChangeConfigurationNotification,
  ErrorAction,
  type FeatureState,
  LanguageClient,
  type Middleware,
  RevealOutputChannelOn,
  type StaticFeature,
} from "vscode-languageclient/node";
import { FILL_COMMAND, type FillParams, STATUS_CHANGED, type Status } from "./protocol";
import { collect } from "./settings";

export const DOCUMENTS = [{ scheme: "file" }, { scheme: "untitled" }, { scheme: "vscode-notebook-cell" }];

export interface Listener {
  /** The connection was lost although nobody asked for that. */
  lost(): void;
  status(status: Status): void;
  /** What is on offer now: the sentence that comes with it, if any. */
  offered(attribution: string | undefined): void;
  fill(params: FillParams): Promise<void>;
}

/** What a server writes to stderr. Where it ends at once, the last line says why. */
export class Words {
  private last = "";
  private ended: Promise<void> = Promise.resolve();

  constructor(private readonly log: LogOutputChannel) {}

  readonly listen = (input: Readable): void => {
    const lines = createInterface({ input });
    this.ended = new Promise((resolve) => lines.once("close", resolve));
    lines.on("line", (line) => {
      this.log.info(line);
      this.last = line.trim() || this.last;
    });
  };

  async lastLine(): Promise<string> {
    await Promise.race([this.ended, new Promise((resolve) => setTimeout(resolve, 500))]);
    return this.last;
  }
}

export class Client extends LanguageClient {
  constructor(command: string[], log: LogOutputChannel, words: Words, listener: Listener) {
    super(
      "fimls",
      "fimls",
      // Not in the folder that is open: `python -m` would import what lies there.
      { command: command[0] as string, args: command.slice(1), options: { cwd: homedir() } },
      {
        documentSelector: DOCUMENTS,
        outputChannel: log,
        revealOutputChannelOn: RevealOutputChannelOn.Never,
        initializationOptions: () => collect(undefined, "all"),
        initializationFailedHandler: () => false,
        stdioOptions: { stdout: words.listen, stderr: words.listen },
        errorHandler: {
          error: (_error, _message, count) => ({
            action: (count ?? 0) <= 3 ? ErrorAction.Continue : ErrorAction.Shutdown,
            handled: true,
          }),
          closed: () => {
            listener.lost();
            return { action: CloseAction.DoNotRestart, handled: true };
          },
        },
        middleware: middleware(listener),
      },
    );
    this.registerFeature(new StatusCapability());
    this.onNotification(STATUS_CHANGED, (status: Status) => listener.status(status));
  }

  /** To the log only; what the user has to know is in the status bar. */
  override error(message: string, data?: unknown): void {
    super.error(message, data, false);
  }

  async tellSettings(): Promise<void> {
    const settings = { fimls: collect(undefined, "live") };
    await this.sendNotification(DidChangeConfigurationNotification.type, { settings });
  }

  /** Ends the process, whatever state it is in. */
  async end(): Promise<void> {
    const child = this.serverProcess;
    try {
      await this.dispose();
    } catch {
      // It never ran, or did not answer in time.
    } finally {
      child?.kill();
    }
  }
}

class StatusCapability implements StaticFeature {
  fillClientCapabilities(capabilities: ClientCapabilities): void {
    capabilities.experimental = { ...capabilities.experimental, fimls: { status: true } };
  }
  initialize(): void {}
  getState(): FeatureState {
    return { kind: "static" };
  }
  clear(): void {}
}

function middleware(listener: Listener): Middleware {
  return {
    provideInlineCompletionItems: async (document, position, context, token, next) => {
      const result = await next(document, position, context, token);
      if (!token.isCancellationRequested) {
        listener.offered(attribution(result));
      }
      return result;
    },
    executeCommand: (command, parameters, next) => {
      if (command === FILL_COMMAND) {
        return listener.fill(parameters[0] as FillParams);
      }
      listener.offered(undefined); // it was accepted
      return next(command, parameters);
    },
    workspace: {
      configuration: (params, token, next) =>
        params.items.every((item) => item.section === "fimls")
          ? params.items.map((item) => collect(item.scopeUri ? Uri.parse(item.scopeUri) : undefined, "live"))
          : next(params, token),
      // `tellSettings` does this, without what is not for the server.
      didChangeConfiguration: () => Promise.resolve(),
    },
  };
}

function attribution(result: InlineCompletionItem[] | InlineCompletionList | null | undefined): string | undefined {
  const first = Array.isArray(result) ? result[0] : result?.items[0];
  const sentence: unknown = first?.command?.arguments?.[1];
  return typeof sentence === "string" ? sentence : undefined;
}
