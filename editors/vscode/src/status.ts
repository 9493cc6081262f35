// The item in the status bar, and the menu behind it.
import {
  commands,
  type Disposable,
  MarkdownString,
  QuickPickItemKind,
  type QuickPickItem,
  StatusBarAlignment,
  type StatusBarItem,
  ThemeColor,
  window,
} from "vscode";
import type { Status } from "./protocol";
import { isEnabled, isLanguageEnabled } from "./settings";

const ICONS = { loading: "loading~spin", ready: "check", busy: "loading~spin", off: "circle-slash", failed: "error" };
/** Most answers come sooner; a spinner at each key would only flicker. */
const BUSY_AFTER_MS = 250;

export class StatusBar implements Disposable {
  private readonly item: StatusBarItem;
  private readonly offer: StatusBarItem;
  private busy: NodeJS.Timeout | undefined;
  private status: Status = { state: "loading", message: "" };
  private installable = false;

  constructor() {
    this.item = window.createStatusBarItem("fimls.status", StatusBarAlignment.Right, 100);
    this.item.name = "fimls";
    this.item.command = "fimls.openMenu";
    this.offer = window.createStatusBarItem("fimls.offer", StatusBarAlignment.Right, 99);
    this.offer.name = "fimls: where a suggestion comes from";
    this.offer.command = "fimls.why";
    this.set(this.status);
    this.item.show();
  }

  set(status: Status, installable = false): void {
    this.status = status;
    this.installable = installable;
    clearTimeout(this.busy);
    if (status.state === "busy") {
      this.busy = setTimeout(() => this.draw(), BUSY_AFTER_MS);
    } else {
      this.draw();
    }
  }

  /** The sentences that come with what is on offer now. */
  setOffer(attribution: string | undefined): void {
    if (attribution === undefined) {
      this.offer.hide();
    } else {
      this.offer.text = `$(law) ${attribution}`;
      this.offer.tooltip = `What is on offer ${attribution}`;
      this.offer.show();
    }
  }

  dispose(): void {
    clearTimeout(this.busy);
    this.item.dispose();
    this.offer.dispose();
  }

  private draw(): void {
    const { state, message, model, progress } = this.status;
    const share = state === "loading" && typeof progress === "number" ? ` ${Math.round(progress * 100)}%` : "";
    this.item.text = `$(${ICONS[state]}) fimls${share}`;
    this.item.backgroundColor = state === "failed" ? new ThemeColor("statusBarItem.errorBackground") : undefined;
    this.item.accessibilityInformation = { label: `fimls, ${state}${share}. ${message}`, role: "button" };
    const tooltip = new MarkdownString();
    tooltip.appendText(["fimls", state, model].filter(Boolean).join(" · "));
    if (message) {
      tooltip.appendMarkdown("\n\n").appendText(message);
    }
    this.item.tooltip = tooltip;
  }

  async openMenu(): Promise<void> {
    const { state, message, model } = this.status;
    const chosen = await window.showQuickPick(this.entries(), {
      title: ["fimls", state, model].filter(Boolean).join(" · "),
      placeHolder: message || "What shall it be?",
    });
    if (chosen && "run" in chosen) {
      const [command, ...parameters] = (chosen as Entry).run;
      await commands.executeCommand(command as string, ...parameters);
    }
  }

  private entries(): QuickPickItem[] {
    const { state, message } = this.status;
    const up = state !== "failed" || this.status.model !== undefined;
    const document = window.activeTextEditor?.document;
    const enabled = isEnabled(document?.uri);
    const entries: QuickPickItem[] = [];
    if (this.installable) {
      entries.push(entry("cloud-download", "Install the server…", "fimls.install"));
    }
    if (state === "failed") {
      entries.push(entry("debug-restart", "Restart the server", "fimls.restart"));
      entries.push(entry("output", "Show the log", "fimls.showLog"));
    }
    if (up) {
      entries.push(entry("question", "Why this suggestion?", "fimls.why"));
      entries.push(entry(enabled ? "circle-slash" : "check", enabled ? "Suggestions off" : "Suggestions on", "fimls.toggle"));
      if (document && enabled) {
        const language = document.languageId;
        const on = isLanguageEnabled(language, document.uri);
        entries.push(entry(on ? "circle-slash" : "check", `Suggestions ${on ? "off" : "on"} for ${language}`, "fimls.toggleLanguage"));
      }
      if (state === "off" && /^snoozed/i.test(message)) {
        entries.push(entry("bell", "End the snooze", "fimls.snooze", 0));
      } else if (enabled) {
        entries.push(entry("bell-slash", "Snooze for 5 minutes", "fimls.snooze", 5));
        entries.push(entry("bell-slash", "Snooze for an hour", "fimls.snooze", 60));
      }
      entries.push(entry("circuit-board", "Choose the model…", "fimls.pickModel"));
      entries.push(entry("pulse", "Doctor: how fast it is here, and what is wrong", "fimls.showDoctor"));
    }
    entries.push({ label: "", kind: QuickPickItemKind.Separator });
    if (state !== "failed") {
      entries.push(entry("output", "Show the log", "fimls.showLog"));
      entries.push(entry("debug-restart", "Restart the server", "fimls.restart"));
    }
    entries.push(entry("gear", "Settings", "workbench.action.openSettings", "@ext:fimls.fimls"));
    entries.push(entry("book", "Get started", "workbench.action.openWalkthrough", "fimls.fimls#start", false));
    return entries;
  }
}

interface Entry extends QuickPickItem {
  run: unknown[];
}

function entry(icon: string, label: string, ...run: unknown[]): Entry {
  return { label: `$(${icon}) ${label}`, run };
}
