"""What becomes of an answer.

- sureness: how sure the model was, and how much of an answer is sure enough.
"""
