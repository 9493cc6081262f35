// Documents that exist in the editor only, and that nobody can write in.
import { EventEmitter, type TextDocumentContentProvider, Uri } from "vscode";

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

  drop(uri: Uri): void {
    this.texts.delete(uri.path);
  }

  provideTextDocumentContent(uri: Uri): string {
    return this.texts.get(uri.path) ?? "";
  }
}
