"""What a model writes, until it is shown: cut, hidden, or fitted to the text around the cursor.

The modules in reading order:
- quotes: brackets, strings and comments as each language has them
- bounds: what the filters know of the text and the answer (Bounds, Answer); a Reason names each
- ends: the rules for where an answer ends, one function each
- repeats: the rules for what was written already, below, above or by the answer itself
- chat: fences, role words and explanations of models that answer in chat
- indentation: tabs and blanks as the file has them; what the cursor's line lacks
- rest_of_line: an answer and what stands right of the cursor
- syntax: whether an answer breaks the syntax of the text around it
- sureness: how sure the model was, and how much of an answer is sure enough (Sureness)
- shaper: all of these in their order (Shaper, Suggestion)

Invariants:
- A rule reads forward only: once it has found an end, more text does not change it. What comes
  after the rules depends on the text up to that end alone. So a streamed answer gives what the same
  answer gives at once.
- What is shown is what the model wrote: cut, and with the indentation of the file.
- Each filter has a name (FILTERS) with which it can be switched off, to measure what it is worth.
"""
