// The messages of editors/PROTOCOL.md that LSP does not have.
import type { WorkspaceEdit as ProtocolEdit, Range as ProtocolRange } from "vscode-languageclient/node";

export interface Status {
  state: "loading" | "ready" | "busy" | "off" | "failed";
  message: string;
  progress?: number | null;
  model?: string;
}

export type FillKind = "selection" | "body" | "docstring";

export interface FillParams {
  textDocument: { uri: string };
  range: ProtocolRange;
  kind: FillKind;
}

export interface Fill {
  label: string;
  edit: ProtocolEdit;
}

export interface Page {
  markdown: string;
}

/** One that is on this machine, or can be fetched. What is not known is null or "". */
export interface Model {
  name: string;
  here: boolean;
  chosen: boolean;
  bytes: number | null;
  memoryBytes: number | null;
  licence: string;
  asksLicence: boolean;
  languages: string;
  suggestionMs: number | null;
  verdict: string;
}

export const STATUS_CHANGED = "fimls/didChangeStatus";
export const FOCUSED = "textDocument/didFocus";
export const FILL = "fimls/fill";
export const SNOOZE = "fimls/snooze";
export const WHY = "fimls/why";
/** Commands of the server that its suggestions and code actions name. */
export const FILL_COMMAND = "fimls.fill";
/** Commands of the server that the extension's own are made of. */
export const LIST_MODELS = "fimls.listModels";
export const CHOOSE_MODEL = "fimls.chooseModel";
export const PULL_MODEL = "fimls.pullModel";
export const DOCTOR = "fimls.doctor";
