// "Why this suggestion?": the server's account of its last answer.
import { commands, window } from "vscode";
import type { Client } from "./client";
import { type Pages, SCHEME } from "./pages";
import { WHY } from "./protocol";
import { notUp, unknownTo } from "./tell";

export async function why(client: Client | undefined, pages: Pages): Promise<void> {
  if (client === undefined) {
    return notUp();
  }
  const uri = window.activeTextEditor?.document.uri;
  const params = uri && uri.scheme !== SCHEME ? { textDocument: { uri: uri.toString() } } : {};
  let answer: { markdown: string } | null;
  try {
    answer = await client.sendRequest<{ markdown: string } | null>(WHY, params);
  } catch (error) {
    unknownTo(error);
    return;
  }
  if (answer === null) {
    window.showInformationMessage("fimls: Nothing was asked here yet.");
    return;
  }
  const page = pages.put("/Why this suggestion.md", answer.markdown);
  try {
    await commands.executeCommand("markdown.showPreviewToSide", page);
  } catch {
    await window.showTextDocument(page, { preview: true }); // VS Code's own Markdown extension is switched off
  }
}
