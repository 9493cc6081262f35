// "Doctor": what the server finds out about this machine and the installation, as a page.
import { ProgressLocation, window } from "vscode";
import type { Client } from "./client";
import type { Pages } from "./pages";
import { DOCTOR, type Page } from "./protocol";
import { notUp, run, tellFailure } from "./tell";

export async function doctor(client: Client | undefined, pages: Pages): Promise<void> {
  if (client === undefined) {
    return notUp();
  }
  const uri = window.activeTextEditor?.document.uri;
  const place = uri?.scheme === "file" ? { textDocument: { uri: uri.toString() } } : undefined;
  const where = { location: ProgressLocation.Notification, title: "fimls: The doctor measures this machine", cancellable: true };
  const page = await window.withProgress(where, async (_progress, token) => {
    try {
      return await run<Page>(client, DOCTOR, place, token);
    } catch (error) {
      if (!token.isCancellationRequested) {
        tellFailure(error);
      }
      return undefined;
    }
  });
  if (page) {
    await pages.show("/fimls doctor.md", page.markdown);
  }
}
