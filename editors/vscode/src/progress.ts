// The server's work that can be cancelled, as notifications: VS Code's progress in the status bar has no button for that.
import { ProgressLocation, window } from "vscode";
import {
  type LanguageClient,
  type Middleware,
  type ProgressToken,
  State,
  type WorkDoneProgressBegin,
  WorkDoneProgressCancelNotification,
  type WorkDoneProgressReport,
} from "vscode-languageclient/node";

interface Shown {
  report(params: WorkDoneProgressReport): void;
  end(): void;
}

export function cancellable(client: LanguageClient): NonNullable<Middleware["handleWorkDoneProgress"]> {
  const all = new Map<ProgressToken, Shown>();
  client.onDidChangeState(({ newState }) => {
    if (newState === State.Stopped) {
      all.forEach((shown) => shown.end());
      all.clear();
    }
  });
  return (token, params, next) => {
    const shown = all.get(token);
    if (params.kind === "begin" && params.cancellable) {
      const cancel = () => client.sendNotification(WorkDoneProgressCancelNotification.type, { token }).catch(() => undefined);
      all.set(token, show(params, cancel));
    } else if (shown && params.kind === "report") {
      shown.report(params);
    } else {
      shown?.end();
      all.delete(token);
      next(token, params);
    }
  };
}

function show(begin: WorkDoneProgressBegin, cancel: () => void): Shown {
  let end = () => {};
  const ended = new Promise<void>((resolve) => (end = resolve));
  let report: Shown["report"] = () => {};
  let reported = 0;
  let said = "";
  const where = { location: ProgressLocation.Notification, title: begin.title, cancellable: true };
  window.withProgress(where, (progress, token) => {
    token.onCancellationRequested(cancel);
    report = ({ message = said, percentage = reported }) => {
      progress.report({ message, increment: Math.max(0, percentage - reported) });
      reported = Math.max(reported, percentage);
      said = message;
    };
    report({ ...begin, kind: "report" });
    return ended;
  });
  return { report: (params) => report(params), end: () => end() };
}
