// What is read from and written to the settings under `fimls`. What they mean is the server's business.
import { ConfigurationTarget, type ExtensionContext, type Uri, workspace } from "vscode";

const SECTION = "fimls";
/** These are for the extension alone; the server does not know them. */
const OURS = ["serverCommand", "installSource"];

interface Group {
  properties: Record<string, { scope?: string }>;
}

let all: string[] = [];
let machine: string[] = [];

/** Which settings there are, and which only the machine may set, is said once: in package.json. */
export function readManifest(context: ExtensionContext): void {
  const groups: Group[] = context.extension.packageJSON.contributes.configuration;
  const entries = groups
    .flatMap((group) => Object.entries(group.properties))
    .map(([name, property]) => [name.slice(SECTION.length + 1), property.scope] as const);
  all = entries.map(([name]) => name).filter((name) => !OURS.includes(name));
  machine = entries.filter(([, scope]) => scope === "machine").map(([name]) => name);
}

/** Settings that the server takes at its start only. */
export function startSettings(): string[] {
  return machine.filter((name) => name !== "installSource").map((name) => `${SECTION}.${name}`);
}

/**
 * What the user has set, nested as the server reads it. Defaults are left out: they are the server's, and environment
 * variables come between.
 */
export function collect(scope: Uri | undefined, names: "all" | "live"): Record<string, unknown> {
  const configuration = workspace.getConfiguration(SECTION, scope ?? null);
  const result: Record<string, unknown> = {};
  for (const name of all) {
    if ((names === "live" && machine.includes(name)) || !isSet(configuration.inspect(name))) {
      continue;
    }
    const [group, key] = name.includes(".") ? name.split(".", 2) : [undefined, name];
    const target = group === undefined ? result : ((result[group] ??= {}) as Record<string, unknown>);
    target[key as string] = configuration.get(name);
  }
  return result;
}

export function serverCommand(): string[] {
  return workspace.getConfiguration(SECTION).get<string[]>("serverCommand", []).filter(Boolean);
}

export async function setServerCommand(command: string[]): Promise<void> {
  await workspace.getConfiguration(SECTION).update("serverCommand", command, ConfigurationTarget.Global);
}

/** What the user has set, "" where that is nothing. */
export function setting(name: string): string {
  return workspace.getConfiguration(SECTION).inspect<string>(name)?.globalValue ?? "";
}

export async function removeSetting(name: string): Promise<void> {
  await workspace.getConfiguration(SECTION).update(name, undefined, ConfigurationTarget.Global);
}

/** What to install as the server; "" where that is the one in this extension. */
export function installSource(): string {
  return workspace.getConfiguration(SECTION).get<string>("installSource", "");
}

export function isEnabled(scope?: Uri): boolean {
  return workspace.getConfiguration(SECTION, scope ?? null).get<boolean>("enabled", true);
}

export function isLanguageEnabled(language: string, scope: Uri): boolean {
  return !disabledLanguages(scope).includes(language);
}

export async function toggle(scope?: Uri): Promise<void> {
  await write("enabled", !isEnabled(scope), scope);
}

export async function toggleLanguage(language: string, scope: Uri): Promise<void> {
  const disabled = disabledLanguages(scope);
  const rest = disabled.filter((name) => name !== language);
  await write("disabledLanguages", rest.length < disabled.length ? rest : [...disabled, language], scope);
}

function disabledLanguages(scope: Uri): string[] {
  return workspace.getConfiguration(SECTION, scope).get<string[]>("disabledLanguages", []);
}

/** Where the value in force comes from, so that the change is seen. */
async function write(name: string, value: unknown, scope: Uri | undefined): Promise<void> {
  const configuration = workspace.getConfiguration(SECTION, scope ?? null);
  const where = configuration.inspect(name);
  const target =
    where?.workspaceFolderValue !== undefined
      ? ConfigurationTarget.WorkspaceFolder
      : where?.workspaceValue !== undefined
        ? ConfigurationTarget.Workspace
        : ConfigurationTarget.Global;
  await configuration.update(name, value, target);
}

function isSet(where: object | undefined): boolean {
  return Object.entries(where ?? {}).some(
    ([key, value]) => key.endsWith("Value") && key !== "defaultValue" && key !== "defaultLanguageValue" && value !== undefined,
  );
}
