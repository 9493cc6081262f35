// The extension's parts, put together. What to suggest and when is decided in the server.
import { commands, type ExtensionContext, type TextEditor, window, workspace } from "vscode";
import { doctor } from "./doctor";
import { fill, fillHere } from "./fill";
import { install, offerInstall } from "./install";
import { chooseModel } from "./models";
import { Pages, SCHEME } from "./pages";
import { Preview } from "./preview";
import { SNOOZE, type Status } from "./protocol";
import { Server } from "./server";
import { readManifest, toggle, toggleLanguage } from "./settings";
import { StatusBar } from "./status";
import { notUp, unknownTo } from "./tell";
import { why } from "./why";

let server: Server | undefined;

export function activate(context: ExtensionContext): void {
  readManifest(context);
  const log = window.createOutputChannel("fimls", { log: true });
  const bar = new StatusBar();
  const pages = new Pages();
  const preview = new Preview(pages);
  const started: Server = new Server(log, {
    status: (status: Status) => bar.set(status),
    offered: (attribution) => bar.setOffer(attribution),
    fill: (params) => fill(started.running, preview, params),
    missing: () => {
      bar.set({ state: "failed", message: "fimls is not installed." }, true);
      void offerInstall(context, restart);
    },
  });
  server = started;
  const restart = () => started.restart();
  // Whatever was on offer, it was for another place.
  const moved = window.onDidChangeTextEditorSelection(() => bar.setOffer(undefined));

  const register = (name: string, run: (...parameters: never[]) => unknown) =>
    context.subscriptions.push(commands.registerCommand(`fimls.${name}`, run));
  const alias = (name: string, builtin: string) => register(name, () => commands.executeCommand(builtin));
  alias("trigger", "editor.action.inlineSuggest.trigger");
  alias("accept", "editor.action.inlineSuggest.commit");
  alias("acceptWord", "editor.action.inlineSuggest.acceptNextWord");
  alias("acceptLine", "editor.action.inlineSuggest.acceptNextLine");
  alias("next", "editor.action.inlineSuggest.showNext");
  alias("previous", "editor.action.inlineSuggest.showPrevious");
  register("openMenu", () => bar.openMenu());
  register("fillSelection", () => fillHere(started.running, preview, "selection"));
  register("completeBody", () => fillHere(started.running, preview, "body"));
  register("fillDocstring", () => fillHere(started.running, preview, "docstring"));
  register("applyEdit", () => preview.apply());
  register("discardEdit", () => preview.close());
  register("toggle", () => toggle(window.activeTextEditor?.document.uri));
  register("toggleLanguage", () => inEditor(({ document }) => toggleLanguage(document.languageId, document.uri)));
  register("snooze", (minutes?: number) => snooze(started, minutes));
  register("why", () => why(started.running, pages));
  register("pickModel", () => chooseModel(started));
  register("showDoctor", () => doctor(started.running, pages));
  register("showLog", () => log.show());
  register("restart", restart);
  register("install", () => install(context, restart));

  context.subscriptions.push(log, bar, moved, workspace.registerTextDocumentContentProvider(SCHEME, pages));
  restart();
}

export async function deactivate(): Promise<void> {
  await server?.dispose();
}

function inEditor(run: (editor: TextEditor) => unknown): unknown {
  return window.activeTextEditor && run(window.activeTextEditor);
}

async function snooze(server: Server, given: number | undefined): Promise<void> {
  const choices = [5, 30, 60, 0].map((minutes) => ({ label: minutes ? `${minutes} minutes` : "End the snooze", minutes }));
  const minutes = given ?? (await window.showQuickPick(choices, { title: "No suggestions for" }))?.minutes;
  if (minutes === undefined) {
    return;
  }
  try {
    await (server.running ? server.running.sendRequest(SNOOZE, { minutes }) : notUp());
  } catch (error) {
    unknownTo(error);
  }
}
