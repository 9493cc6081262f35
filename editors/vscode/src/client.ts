// One connection to one server process: vscode-languageclient, less its message windows, plus our capability.
import type { ChildProcess } from "node:child_process";
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
  type MessageTransports,
  type Middleware,
  RevealOutputChannelOn,
  type StaticFeature,
} from "vscode-languageclient/node";
import { FILL_COMMAND, type FillParams, STATUS_CHANGED, type Status } from "./protocol";
import { cancellable } from "./progress";
import { collect } from "./settings";

const START_MS = 30_000;
const KILL_MS = 2_000;
const WRITE_ERRORS = 3;

export const DOCUMENTS = [{ scheme: "file" }, { scheme: "untitled" }, { scheme: "vscode-notebook-cell" }];

export interface Listener {
  /** The connection was lost although nobody asked for that. */
  lost(): void;
  status(status: Status): void;
  /** What is on offer now: the sentences that come with it, if any. */
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

/** The program runs and says nothing that a server would. */
export class Late extends Error {
  constructor(command: string[]) {
    super(
      `${command.join(" ")} did not answer within ${START_MS / 1000} seconds. ` +
        "Set fimls.serverCommand to the command of the server, for example [\"/path/to/fimls\", \"lsp\"].",
    );
  }
}

export class Client extends LanguageClient {
  private child: ChildProcess | undefined;
  private abandoned = false;

  constructor(
    private readonly command: string[],
    log: LogOutputChannel,
    words: Words,
    listener: Listener,
  ) {
    let isLost = false;
    const lost = () => {
      if (!isLost) {
        isLost = true;
        listener.lost();
      }
    };
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
        stdioOptions: { stdout: () => undefined, stderr: words.listen },
        errorHandler: {
          error: (_error, _message, count) => {
            if ((count ?? 0) <= WRITE_ERRORS) {
              return { action: ErrorAction.Continue, handled: true };
            }
            lost(); // after a shutdown `closed` is not called
            return { action: ErrorAction.Shutdown, handled: true };
          },
          closed: () => {
            lost();
            return { action: CloseAction.DoNotRestart, handled: true };
          },
        },
        middleware: middleware(listener),
      },
    );
    this.middleware.handleWorkDoneProgress = cancellable(this);
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

  /** Like `start`, but not for ever: not every program answers. */
  async begin(): Promise<void> {
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      this.abandon();
    }, START_MS);
    try {
      await this.start();
    } catch (error) {
      throw late ? new Late(this.command) : error;
    } finally {
      clearTimeout(timer);
    }
  }

  /** Lets a start fail now. */
  abandon(): void {
    this.abandoned = true;
    this.kill();
  }

  /** Ends the process, whatever state it is in. */
  async end(): Promise<void> {
    try {
      await this.dispose();
    } catch {
      // It never ran, or did not answer in time.
    } finally {
      this.kill();
    }
  }

  protected override async createMessageTransports(encoding: string): Promise<MessageTransports> {
    const transports = await super.createMessageTransports(encoding);
    this.child = this.serverProcess;
    if (this.abandoned) {
      this.kill();
      throw new Error("The start was given up.");
    }
    return transports;
  }

  private kill(): void {
    const child = this.child;
    if (child === undefined) {
      return;
    }
    // A child of its own may hold the pipes open: what waits for them must not.
    child.stdin?.destroy();
    child.stdout?.destroy();
    child.kill();
    setTimeout(() => child.exitCode ?? child.signalCode ?? child.kill("SIGKILL"), KILL_MS).unref();
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

/** VS Code does not tell which of the alternatives is looked at, so it is what any of them says. */
function attribution(result: InlineCompletionItem[] | InlineCompletionList | null | undefined): string | undefined {
  const items = Array.isArray(result) ? result : (result?.items ?? []);
  const sentences = items.map((item): unknown => item.command?.arguments?.[1]).filter((said) => typeof said === "string");
  return sentences.length ? [...new Set(sentences)].join("; ") : undefined;
}
