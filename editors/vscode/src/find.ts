// Where programs are. An editor started from a desktop has a short PATH, so the usual places are looked at too.
import { constants } from "node:fs";
import { access, stat } from "node:fs/promises";
import { homedir } from "node:os";
import { delimiter, isAbsolute, join } from "node:path";
import { serverCommand } from "./settings";

/** The command that starts the server, or undefined where there is none. */
export async function findServer(): Promise<string[] | undefined> {
  const [name = "fimls", ...rest] = serverCommand();
  const given = serverCommand().length > 0;
  const program = await findProgram(name);
  if (program !== undefined) {
    return [program, ...(given ? rest : ["lsp"])];
  }
  // What the user named is tried as it stands: the error then names it.
  return given ? [name, ...rest] : undefined;
}

export async function findProgram(name: string): Promise<string | undefined> {
  const home = name.startsWith("~/") ? join(homedir(), name.slice(2)) : name;
  if (isAbsolute(home)) {
    return (await isProgram(home)) ? home : undefined;
  }
  const endings = process.platform === "win32" && !/\.exe$/i.test(home) ? [".exe"] : [""];
  for (const folder of folders()) {
    for (const ending of endings) {
      const path = join(folder, home + ending);
      if (await isProgram(path)) {
        return path;
      }
    }
  }
  return undefined;
}

function folders(): string[] {
  const { env } = process;
  const usual = [
    env.UV_TOOL_BIN_DIR,
    env.PIPX_BIN_DIR,
    env.XDG_BIN_HOME,
    env.XDG_DATA_HOME && join(env.XDG_DATA_HOME, "..", "bin"),
    join(homedir(), ".local", "bin"),
    join(homedir(), ".cargo", "bin"),
    ...(process.platform === "win32" ? [] : ["/opt/homebrew/bin", "/usr/local/bin"]),
  ];
  // A relative folder of the PATH would be looked up in whatever folder is open.
  return [...(env.PATH ?? "").split(delimiter), ...usual].filter((path): path is string => !!path && isAbsolute(path));
}

async function isProgram(path: string): Promise<boolean> {
  try {
    await access(path, constants.X_OK);
    return (await stat(path)).isFile();
  } catch {
    return false;
  }
}
