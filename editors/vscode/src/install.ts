// Installing the server through uv, in a terminal and after a question. It comes with the extension as a Python wheel, so
// both are of one version, and only what it is built on is downloaded.
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import {
  commands,
  Disposable,
  env,
  type ExtensionContext,
  ProcessExecution,
  Task,
  type TaskExecution,
  TaskPanelKind,
  TaskRevealKind,
  tasks,
  TaskScope,
  Uri,
  window,
  workspace,
} from "vscode";
import { findProgram } from "./find";
import { installSource, setServerCommand } from "./settings";

const ASKED = "install.asked";
const UV = "https://docs.astral.sh/uv/getting-started/installation/";
const CHOICES = [
  { label: "For the CPU", description: "about 200 MB to download", backend: "cpu" },
  { label: "For the GPU of this machine", description: "about 3 GB to download with CUDA", backend: "auto" },
];

let asking = false;

/** Asked once, whatever the answer; after that it is in the status bar's menu. */
export async function offerInstall(context: ExtensionContext, installed: () => void): Promise<void> {
  if (asking || context.globalState.get(ASKED)) {
    return;
  }
  asking = true;
  const choice = await window.showInformationMessage(
    "fimls needs its server, a program that runs on this machine, and does not find it.",
    "Install",
    "Choose command",
    "Not now",
  );
  await context.globalState.update(ASKED, true);
  if (choice === "Install") {
    await install(context, installed);
  } else if (choice === "Choose command") {
    await chooseCommand();
  }
}

export async function install(context: ExtensionContext, installed: () => void): Promise<void> {
  if (!workspace.isTrusted) {
    // VS Code would ask for trust, and on a no forget the task without a word.
    const question = "fimls: VS Code runs an installation in a trusted workspace only.";
    if ((await window.showInformationMessage(question, "Manage Trust")) === "Manage Trust") {
      await commands.executeCommand("workbench.trust.manage");
    }
    return;
  }
  const uv = await findProgram("uv");
  if (uv === undefined) {
    const choice = await window.showInformationMessage(
      "fimls is installed with uv, which is not here yet.",
      "How to get uv",
      "Choose command",
    );
    if (choice === "How to get uv") {
      await env.openExternal(Uri.parse(UV));
    } else if (choice === "Choose command") {
      await chooseCommand();
    }
    return;
  }
  // PyTorch has one build for a Mac.
  const build =
    process.platform === "darwin"
      ? { ...CHOICES[0]!, backend: "auto" }
      : await window.showQuickPick(CHOICES, { title: "Install fimls", placeHolder: "Which build of PyTorch shall it be?" });
  if (build === undefined) {
    return;
  }
  const source = installSource() || (await shipped(context));
  if (source === undefined) {
    await window.showInformationMessage("This build of the extension has no server in it: set fimls.installSource.");
    return;
  }
  const command = ["tool", "install", "--force", `--torch-backend=${build.backend}`, source];
  const agreed = await window.showInformationMessage(
    "Install the fimls server?",
    {
      modal: true,
      detail: `That is ${build.description}. This is run in a terminal, where Ctrl+C ends it:\n\n${[uv, ...command].join(" ")}`,
    },
    "Install",
  );
  if (agreed === "Install" && (await runInTerminal(uv, command))) {
    installed();
  }
}

/** The wheel that `make vsix` put into the extension. */
async function shipped(context: ExtensionContext): Promise<string | undefined> {
  const folder = context.asAbsolutePath("server");
  const wheel = (await readdir(folder).catch(() => [])).find((name) => name.endsWith(".whl"));
  return wheel && join(folder, wheel);
}

async function chooseCommand(): Promise<void> {
  const [file] = (await window.showOpenDialog({ title: "The fimls program", openLabel: "Use this" })) ?? [];
  if (file) {
    await setServerCommand([file.fsPath, "lsp"]);
  }
}

/** Whether it ended well. */
async function runInTerminal(program: string, parameters: string[]): Promise<boolean> {
  const task = new Task({ type: "fimls" }, TaskScope.Workspace, "Install the server", "fimls", new ProcessExecution(program, parameters));
  task.presentationOptions = { reveal: TaskRevealKind.Always, panel: TaskPanelKind.Dedicated, clear: true };
  const isOurs = ({ execution }: { execution: TaskExecution }) =>
    execution.task.source === task.source && execution.task.name === task.name;
  let listening: Disposable | undefined;
  try {
    return await new Promise<boolean>((resolve, reject) => {
      listening = Disposable.from(
        tasks.onDidEndTaskProcess((event) => isOurs(event) && resolve(event.exitCode === 0)),
        // Without a process before it: it never ran. Where there was one, its end is told first or soon after.
        tasks.onDidEndTask((event) => isOurs(event) && setTimeout(() => resolve(false), 1000)),
      );
      tasks.executeTask(task).then(undefined, reject);
    });
  } catch (error) {
    window.showWarningMessage(`fimls: The installation does not start: ${error instanceof Error ? error.message : String(error)}`);
    return false;
  } finally {
    listening?.dispose();
  }
}
