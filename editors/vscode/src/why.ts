// "Why this suggestion?": the server's account of its last answer.
import { window } from "vscode";
import type { Client } from "./client";
import { type Pages, SCHEME } from "./pages";
import { type Page, WHY } from "./protocol";
import { notUp, unknownTo } from "./tell";

export async function why(client: Client | undefined, pages: Pages): Promise<void> {
  if (client === undefined) {
    return notUp();
  }
  const uri = window.activeTextEditor?.document.uri;
  const params = uri && uri.scheme !== SCHEME ? { textDocument: { uri: uri.toString() } } : {};
  let answer: Page | null;
  try {
    answer = await client.sendRequest<Page | null>(WHY, params);
  } catch (error) {
    unknownTo(error);
    return;
  }
  if (answer === null) {
    window.showInformationMessage("fimls: Nothing was asked here yet.");
    return;
  }
  await pages.show("/Why this suggestion.md", answer.markdown, "ToSide");
}
