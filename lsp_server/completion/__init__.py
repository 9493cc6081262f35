"""One suggestion, from the cursor to the text that is shown.

The values that one suggestion goes through:
- Query (query.py): a question to the engine at one cursor, and the rules that read its answer.
- AnswerStream (stream.py): the engine's answer as it comes, read by a task of its own.
- Suggestion (fim): the text to show, after the filters.
- Completion (query.py): a query, its answer, the suggestion and the trace: how it came about.
- Offer (offers.py): a suggestion that was sent, and its stream while more of it is being written.

The modules in reading order:
- suggestions.py: answers a request from an offer, from the cache or from the engine; alternatives;
  the rest of an answer that was cut at the time budget.
- query.py: makes a query from a snapshot and a completion from an answer. An answer gets cut here
  by the time budget, and by fim's Shaper.
- stream.py: reads the engine's answer, and says how sure the model was of it.
- answer_cache.py: the whole answers by query, and the contexts by text.
- offers.py: which offer goes on at the cursor, and the counts of what was shown and accepted.
- fill.py: fill-in edits: a selection, a function's body or a docstring.
- prefill.py: in idle time the engine reads the prompt at the cursor.
- explain.py: the answer to "Why this suggestion?".
- trace.py: the figures of one request.
The prompts are made in session/prompter.py, because a session makes its prompter.

`close` is the one word for ending work and forgetting values: of a stream, a document, or all
documents. Whoever starts a stream closes it.

Invariants: a request is answered once, with nothing if a newer one for its document or an edit
comes first. A suggestion is only sent for the version of the text that it was made for. A shown
suggestion is extended and never swapped. An accepted suggestion gives prefix + text + suffix, less
the replaced range. The same query gets the same answer. No module here knows LSP or loads torch.
"""
