// Documents that exist in the editor only, and that nobody can write in.
import { commands, EventEmitter, type TextDocumentContentProvider, Uri, window } from "vscode";

export const SCHEME = "fimls";

export class Pages implements TextDocumentContentProvider {
  private readonly changed = new EventEmitter<Uri>();
  readonly onDidChange = this.changed.event;
  private readonly texts = new Map<string, string>();

  /** Makes the page, or gives it another text. */
  put(path: string, text: string): Uri {
    const uri = Uri.from({ scheme: SCHEME, path });
    this.texts.set(uri.path, text);
    this.changed.fire(uri);
    return uri;
  }

  /** As Markdown, drawn. */
  async show(path: string, markdown: string, where: "" | "ToSide" = ""): Promise<void> {
    const page = this.put(path, markdown);
    try {
      await commands.executeCommand(`markdown.showPreview${where}`, page);
    } catch {
      await window.showTextDocument(page, { preview: true }); // VS Code's own Markdown extension is switched off
    }
  }

  drop(uri: Uri): void {
    this.texts.delete(uri.path);
  }

  provideTextDocumentContent(uri: Uri): string {
    return this.texts.get(uri.path) ?? "";
  }
}
