// Fill-in-the-middle edits: ask, let it be cancelled, and show the change before it is made.
import { ProgressLocation, Range, type TextEditor, window, workspace } from "vscode";
import { TextDocumentEdit } from "vscode-languageclient/node";
import type { Client } from "./client";
import type { Preview } from "./preview";
import { FILL, type Fill, type FillKind, type FillParams } from "./protocol";
import { notUp, tellFailure } from "./tell";

const TITLES = { selection: "Filling in the selection", body: "Writing the body", docstring: "Writing the docstring" };

/** The edit for where the cursor is; two cursors mean the text between them. */
export async function fillHere(client: Client | undefined, preview: Preview, kind: FillKind): Promise<void> {
  const editor = window.activeTextEditor;
  if (editor && client) {
    const range = client.code2ProtocolConverter.asRange(between(editor));
    await fill(client, preview, { textDocument: { uri: editor.document.uri.toString() }, range, kind });
  } else if (editor) {
    notUp();
  }
}

export async function fill(client: Client | undefined, preview: Preview, params: FillParams): Promise<void> {
  if (client === undefined) {
    return notUp();
  }
  const uri = client.protocol2CodeConverter.asUri(params.textDocument.uri);
  const document = await workspace.openTextDocument(uri);
  const asked = document.version;
  const where = { location: ProgressLocation.Notification, title: `fimls: ${TITLES[params.kind]}`, cancellable: true };
  const answer = await window.withProgress(where, async (_progress, token) => {
    try {
      const answer = await client.sendRequest<Fill>(FILL, params, token);
      return token.isCancellationRequested ? undefined : answer;
    } catch (error) {
      if (!token.isCancellationRequested) {
        tellFailure(error);
      }
      return undefined;
    }
  });
  if (answer) {
    const change = answer.edit.documentChanges?.find(TextDocumentEdit.is);
    const edit = await client.protocol2CodeConverter.asWorkspaceEdit(answer.edit);
    await preview.show(document, change?.textDocument.version ?? asked, edit.get(uri), answer.label);
  }
}

function between(editor: TextEditor): Range {
  const [first, second] = editor.selections;
  return editor.selections.length === 2 && first?.isEmpty && second?.isEmpty
    ? new Range(first.active, second.active) // in either order
    : editor.selection;
}
