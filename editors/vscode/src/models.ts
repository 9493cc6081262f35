// "Choose Model": what is here and what can be fetched. The server keeps the choice, fetches, and asks about licences.
import { commands, type QuickPickItem, QuickPickItemKind, window } from "vscode";
import type { Client } from "./client";
import { CHOOSE_MODEL, LIST_MODELS, type Model, PULL_MODEL } from "./protocol";
import type { Server } from "./server";
import { removeSetting, setting } from "./settings";
import { isRefusal, notUp, run, tellFailure } from "./tell";

const REMOVE = "Remove the Setting";

type Picked = Pick<Model, "name" | "here"> | undefined;

interface Item extends QuickPickItem {
  take?: () => Picked | Promise<Picked>;
}

/** Until it has measured, nobody knows the times. */
const DOCTOR: Item = {
  label: "$(pulse) Doctor…",
  description: "measures how fast each would be here",
  alwaysShow: true,
  take: async () => {
    await commands.executeCommand("fimls.showDoctor");
    return undefined;
  },
};

export async function chooseModel(server: Server): Promise<void> {
  const client = server.running;
  if (client === undefined) {
    return notUp();
  }
  try {
    const model = await pick(await run<Model[]>(client, LIST_MODELS));
    if (model === undefined) {
      return;
    }
    if (!model.here) {
      await run(client, PULL_MODEL, { name: model.name });
    }
    await choose(server, client, model.name);
  } catch (error) {
    tellFailure(error);
  }
}

async function choose(server: Server, client: Client, name: string): Promise<void> {
  try {
    await run(server.running ?? client, CHOOSE_MODEL, { name });
  } catch (error) {
    if (!isRefusal(error) || !setting("model")) {
      throw error;
    }
    if ((await window.showInformationMessage(`fimls: ${error.message}`, REMOVE)) === REMOVE) {
      const started = server.nextStart(); // the server takes this setting at its start
      await removeSetting("model");
      const next = await started;
      if (next) {
        await run(next, CHOOSE_MODEL, { name });
      }
    }
  }
}

async function pick(models: Model[]): Promise<Picked> {
  const chosen = await window.showQuickPick(items(models), {
    title: "fimls: Choose Model",
    placeHolder: "The model that writes the suggestions",
    matchOnDescription: true,
    matchOnDetail: true,
  });
  return chosen?.take?.();
}

/** A model that is not in the list. */
async function other(): Promise<Picked> {
  const typed = await window.showInputBox({
    title: "fimls: Choose Model",
    prompt: "The path of a model folder or of a .gguf file, or ORG/REPO[:FILE] of the Hugging Face hub",
    ignoreFocusOut: true,
  });
  const name = typed?.trim();
  return name ? { name, here: /^([~./\\]|[A-Za-z]:[\\/])/.test(name) } : undefined;
}

function items(models: Model[]): Item[] {
  const group = (label: string, here: boolean): Item[] => {
    const found = models.filter((model) => model.here === here).map(item);
    return found.length ? [{ label, kind: QuickPickItemKind.Separator }, ...found] : [];
  };
  return [
    ...group("on this machine", true),
    ...group("to be fetched", false),
    { label: "", kind: QuickPickItemKind.Separator },
    { label: "$(folder) Another…", description: "a path, or a name on the Hugging Face hub", alwaysShow: true, take: other },
    ...(models.some((model) => model.suggestionMs) ? [] : [DOCTOR]),
  ];
}

function item(model: Model): Item {
  const { name, bytes, memoryBytes, licence, asksLicence, suggestionMs, verdict, languages } = model;
  const icon = model.chosen ? "check" : model.here ? "file" : "cloud-download";
  const time = suggestionMs ? `a line after about ${duration(suggestionMs)}` : "";
  const detail = [
    memoryBytes ? `${amount(memoryBytes)} of memory` : "",
    [time, verdict ? `(${verdict})` : ""].filter(Boolean).join(" "),
    languages,
  ];
  return {
    label: `$(${icon}) ${name}`,
    description: [bytes ? amount(bytes) : "", licence + (asksLicence ? ", to be accepted" : "")].filter(Boolean).join(" · "),
    detail: detail.filter(Boolean).join(" · "),
    take: () => model,
  };
}

function duration(ms: number): string {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

function amount(bytes: number): string {
  return bytes < 1e9 ? `${Math.max(1, Math.round(bytes / 1e6))} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}
