// An edit before it is made: a comparison of the text as it is and as it would be, with the buttons Apply and Discard.
// (VS Code's refactor preview shows an edit that has to be confirmed as not chosen: its Apply would do nothing.)
import { commands, type TextDocument, TabInputTextDiff, type TextEdit, type Uri, window, workspace, WorkspaceEdit } from "vscode";
import type { Pages } from "./pages";

interface Shown {
  page: Uri;
  document: TextDocument;
  version: number;
  edits: TextEdit[];
}

export class Preview {
  private shown: Shown | undefined;
  private count = 0;

  constructor(private readonly pages: Pages) {}

  /** `version` is the one that the edits were made for. */
  async show(document: TextDocument, version: number, edits: TextEdit[], label: string): Promise<void> {
    await this.close();
    if (document.version !== version) {
      return changed();
    }
    const name = document.uri.path.split("/").at(-1);
    const page = this.pages.put(`/${++this.count}/${name}`, applied(document, edits));
    this.shown = { page, document, version, edits };
    await commands.executeCommand("vscode.diff", document.uri, page, `${label} (${name})`, { preview: true });
  }

  async apply(): Promise<void> {
    const shown = this.shown;
    if (shown === undefined) {
      return;
    }
    this.shown = undefined; // a second key finds nothing to apply
    const { document, version, edits } = shown;
    const edit = new WorkspaceEdit();
    edit.set(document.uri, edits);
    const made = document.version === version && (await workspace.applyEdit(edit));
    await this.closeTabs(shown.page);
    try {
      const editor = await window.showTextDocument(document);
      if (made && edits[0]) {
        editor.revealRange(edits[0].range);
      }
    } catch {
      // The cell of a notebook has no editor of its own; the notebook stays where it is.
    }
    if (!made) {
      changed();
    }
  }

  async close(): Promise<void> {
    const shown = this.shown;
    this.shown = undefined;
    if (shown) {
      await this.closeTabs(shown.page);
    }
  }

  private async closeTabs(page: Uri): Promise<void> {
    const tabs = window.tabGroups.all.flatMap((group) => group.tabs);
    const ours = (input: unknown) => input instanceof TabInputTextDiff && input.modified.toString() === page.toString();
    await window.tabGroups.close(tabs.filter((tab) => ours(tab.input)));
    this.pages.drop(page);
  }
}

function changed(): void {
  window.showInformationMessage("fimls: The text has changed in the meantime; nothing was filled in.");
}

function applied(document: TextDocument, edits: TextEdit[]): string {
  let text = document.getText();
  const lastFirst = [...edits].sort((a, b) => b.range.start.compareTo(a.range.start));
  for (const { range, newText } of lastFirst) {
    text = text.slice(0, document.offsetAt(range.start)) + newText + text.slice(document.offsetAt(range.end));
  }
  return text;
}
