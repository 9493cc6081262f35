"""Settings, prompter, engine and status of one window.

- session.py: Session makes the engine and the prompter from the settings, says when they are ready,
  and tells the user what is wrong. Status is shown in the editor's status bar.
- layers.py: SettingsLayers, the settings from the file, the environment and the client.
- stand_in.py: StandIn, the model that answers while the chosen one loads or fails.
- prompter.py: Prompter makes contexts and prompts for one model, with its tokenizer and format. It
  is here and not in completion/ because the session makes it; so completion/ imports this folder,
  and this folder does not import completion/.
- prompt_sizes.py: how much text a prompt may hold, by the engine's measured speed.
- known_packages.py: KnownPackages, the filter of known packages that lies beside a model.
- usage.py: the counts of suggestions that were shown and accepted, and the files that keep them.

Invariants: a workspace's settings choose neither the model nor the endpoint (settings.py). fim and
the engine's HTTP client are loaded after `initialize` is answered. Only numbers are kept of what
was suggested, never text.
"""
