// Keeps one server running: starts it, starts it again when it dies, and gives up where that does not help.
import { commands, Disposable, EventEmitter, languages, type LogOutputChannel, type TextEditor, window, workspace } from "vscode";
import { Client, DOCUMENTS, Late, type Listener, Words } from "./client";
import { findServer } from "./find";
import { FOCUSED } from "./protocol";
import { startSettings } from "./settings";

const DEATHS = 5;
const WITHIN_MS = 180_000;
const FIRST_PAUSE_MS = 500;
const SETTLE_MS = 300;
const MOVED_MS = 80;

export interface Owner extends Omit<Listener, "lost"> {
  /** No server was found. */
  missing(): void;
}

export class Server implements Disposable {
  private client: Client | undefined;
  private deaths: number[] = [];
  private timer: NodeJS.Timeout | undefined;
  /** Starts and stops, one after the other. */
  private queue: Promise<void> = Promise.resolve();
  private told = "";
  private moving: NodeJS.Timeout | undefined;
  /** The text in which the cursor was last seen. */
  private seen = "";
  /** How often a fresh start was asked for: a start that is not the last one's gives way. */
  private wishes = 0;
  private readonly subscriptions: Disposable;
  private readonly started = new EventEmitter<Client | undefined>();

  constructor(
    private readonly log: LogOutputChannel,
    private readonly owner: Owner,
  ) {
    this.subscriptions = Disposable.from(
      window.onDidChangeActiveTextEditor((editor) => this.focus(editor)),
      window.onDidChangeTextEditorSelection(({ textEditor }) => this.moved(textEditor)),
      workspace.onDidChangeConfiguration((event) => {
        if (startSettings().some((name) => event.affectsConfiguration(name))) {
          this.restart();
        } else if (event.affectsConfiguration("fimls")) {
          this.running?.tellSettings().catch(this.ignore);
        }
      }),
    );
  }

  /** The client, if it can be spoken to. */
  get running(): Client | undefined {
    return this.client?.isRunning() ? this.client : undefined;
  }

  /** The client of the next start; undefined where that fails. */
  nextStart(): Promise<Client | undefined> {
    return new Promise((resolve) => {
      const listening = this.started.event((client) => {
        listening.dispose();
        resolve(client);
      });
    });
  }

  /** A fresh start by the user's wish: what was before is forgotten. */
  restart(): void {
    this.deaths = [];
    this.told = "";
    this.giveWay();
    this.schedule(SETTLE_MS);
  }

  async dispose(): Promise<void> {
    clearTimeout(this.timer);
    clearTimeout(this.moving);
    this.subscriptions.dispose();
    this.started.dispose();
    this.giveWay();
    this.queue = this.queue.then(() => this.stop());
    await this.queue;
  }

  /** What is queued does not wait for a server that has not answered yet. */
  private giveWay(): void {
    this.wishes++;
    if (!this.client?.isRunning()) {
      this.client?.abandon();
    }
  }

  private schedule(pause: number): void {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.queue = this.queue.then(() => this.stop()).then(() => this.start()).catch(this.ignore);
    }, pause);
  }

  private async stop(): Promise<void> {
    const client = this.client;
    this.client = undefined;
    this.owner.offered(undefined);
    await client?.end();
  }

  private async start(): Promise<void> {
    const wish = this.wishes;
    const command = await findServer();
    if (wish !== this.wishes) {
      return;
    }
    if (command === undefined) {
      this.owner.missing();
      this.started.fire(undefined);
      return;
    }
    this.owner.status({ state: "loading", message: "The server starts." });
    this.log.info(`starting ${command.join(" ")}`);
    const words = new Words(this.log);
    let up = false;
    let heard = false;
    const client: Client = new Client(command, this.log, words, {
      lost: () => {
        if (up && this.client === client) {
          void this.died(words);
        }
      },
      status: (status) => {
        heard = true;
        if (this.client === client) {
          this.owner.status(status);
        }
      },
      offered: (attribution) => this.owner.offered(attribution),
      fill: (params) => this.owner.fill(params),
    });
    this.client = client;
    try {
      await client.begin();
      up = true;
    } catch (error) {
      await client.end();
      const said = error instanceof Late ? "" : await words.lastLine();
      const reason = said || (error instanceof Error ? error.message : String(error));
      if (wish !== this.wishes) {
        return;
      }
      this.fail(`The server does not start: ${reason}`);
      return;
    }
    if (!heard) {
      this.owner.status({ state: "ready", message: "The server runs." });
    }
    await commands.executeCommand("setContext", "fimls.running", true);
    this.focus(window.activeTextEditor);
    this.started.fire(client);
  }

  private async died(words: Words): Promise<void> {
    const now = Date.now();
    this.deaths = [...this.deaths.filter((time) => now - time < WITHIN_MS), now];
    const count = this.deaths.length;
    this.owner.offered(undefined);
    if (count >= DEATHS) {
      const reason = await words.lastLine();
      this.fail(`The server ended ${count} times within three minutes.${reason ? ` It last said: ${reason}` : ""}`);
    } else {
      this.owner.status({ state: "loading", message: "The server ended and is started again." });
      this.schedule(FIRST_PAUSE_MS * 2 ** (count - 1));
    }
  }

  /** Says it in the status bar, and once in a message. */
  private fail(message: string): void {
    this.log.error(message);
    this.started.fire(undefined);
    this.owner.status({ state: "failed", message });
    if (this.told === message) {
      return;
    }
    this.told = message;
    window.showWarningMessage(`fimls: ${message}`, "Show Log", "Restart").then((choice) => {
      if (choice === "Show Log") {
        this.log.show();
      } else if (choice === "Restart") {
        this.restart();
      }
    });
  }

  /** The document that the user looks at, and where the cursor is: what will be asked there is read in idle time. */
  private focus(editor: TextEditor | undefined): void {
    clearTimeout(this.moving);
    const document = editor?.document;
    const ours = document !== undefined && languages.match(DOCUMENTS, document) > 0;
    this.seen = document === undefined ? "" : `${document.version} ${document.uri}`;
    const { line, character } = editor?.selection.active ?? { line: 0, character: 0 };
    const params = ours ? { textDocument: { uri: document.uri.toString() }, position: { line, character } } : {};
    this.running?.sendNotification(FOCUSED, params).catch(this.ignore);
  }

  /** The cursor is elsewhere. Whoever types moves it, too, and asks by himself. */
  private moved(editor: TextEditor): void {
    const seen = `${editor.document.version} ${editor.document.uri}`;
    const jumped = seen === this.seen;
    this.seen = seen;
    clearTimeout(this.moving);
    if (jumped && editor === window.activeTextEditor) {
      this.moving = setTimeout(() => this.focus(editor), MOVED_MS);
    }
  }

  private readonly ignore = (error: unknown): void => this.log.debug(String(error));
}
