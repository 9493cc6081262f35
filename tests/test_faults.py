"""Faults, attacks and bad input, and the tests that hold what is promised of each: docs/faults.md.

`python -m tests.test_faults` writes the page anew.
"""

from __future__ import annotations

from tests.promises import ROOT, Promise, markdown, missing_tests

PAGE = ROOT / "docs" / "faults.md"
TITLE = "Faults, attacks and bad input"
ABOUT = """\
What goes wrong with tools of this kind, what fimls promises of it, and the tests that hold the
promise. `python -m tests.test_faults` writes this page, and a test keeps it current.
[SECURITY.md](../SECURITY.md) says what this means for a user."""

PROTOCOL = "lsp_server/protocol/test_"
ENGINES = "lsp_server/engines/test_"
COMPLETION = "lsp_server/completion/test_"
SECRETS = f"{COMPLETION}secrets.py::test_"
MASKS = "fim/test_secrets.py::test_"
ENGINE = "model/engine/test_"
DISK = "model/prefix_cache/test_disk.py::test_"
WEIGHTS = "model/weights/test_"
DOCUMENTS = "lsp_server/test_documents.py::test_"
SHAPES = "fim/test_postprocess.py::test_"

FAULTS = [
    Promise(
        "A busy generation blocks reading: a trivial request is answered meanwhile",
        [f"{PROTOCOL}completion.py::test_of_many_requests_at_once_the_last_one_counts"],
        "within 50 ms: measured by `python -m benchmarks.responsiveness`",
    ),
    Promise(
        "Cancelled or superseded: stops within a layer of a prefill or one token; always one "
        "answer; queued dead work never starts",
        [
            f"{ENGINE}worker.py::test_a_cancelled_prefill_ends_within_a_layer",
            f"{ENGINE}worker.py::test_a_cancelled_answer_ends_within_a_token",
            f"{ENGINE}worker.py::test_a_job_that_was_cancelled_while_it_waited_never_starts",
            f"{PROTOCOL}completion.py::test_a_cancelled_request_is_answered_once_and_its_work_ends",
            f"{PROTOCOL}completion.py::test_a_newer_request_supersedes_the_older",
        ],
    ),
    Promise(
        "The editor dies, stdin ends, exit: gone in 2 s, no orphan",
        [
            f"{ENGINES}lifetime.py::test_a_server_goes_with_its_editor_in_mid_answer",
            f"{ENGINES}lifetime.py::test_the_end_of_input_ends_the_server",
            f"{ENGINES}lifetime.py::test_exit_ends_the_server_with_the_status_of_the_protocol",
            f"{ENGINES}lifetime.py::test_a_spare_engine_goes_with_its_window",
        ],
    ),
    Promise(
        "Stray output on stdout: only frames",
        [
            f"{PROTOCOL}transport.py::test_noise_never_gets_among_the_frames_and_nothing_eats_them",
            f"{PROTOCOL}transport.py::test_closed_standard_descriptors_are_no_trap",
        ],
    ),
    Promise(
        "Malformed frames and JSON: bounded header and body, and the server survives",
        [
            f"{PROTOCOL}transport.py::test_finds_the_frames_between_garbage",
            f"{PROTOCOL}transport.py::test_survives_what_looks_like_a_header",
            f"{PROTOCOL}transport.py::test_reserves_no_memory_for_what_was_only_announced",
            f"{PROTOCOL}transport.py::"
            "test_bad_messages_are_survived_and_requests_among_them_are_answered",
        ],
    ),
    Promise(
        "The mirror of a text goes wrong: only LSP's line ends count, in each encoding",
        [
            f"{DOCUMENTS}same_as_the_slow_mirror",
            f"{DOCUMENTS}each_encoding_counts_its_own_units",
            f"{PROTOCOL}bad_input.py::"
            "test_a_fault_in_the_mirror_gives_no_suggestion_for_a_stale_text",
        ],
    ),
    Promise(
        "Lone surrogates: no error",
        [
            f"{PROTOCOL}bad_input.py::test_odd_texts_and_places_get_a_suggestion",
            "model/test_tokenizer.py::test_a_lone_surrogate_counts_as_a_replacement_character",
        ],
    ),
    Promise(
        "A giant file or line: windowed work",
        [
            f"{DOCUMENTS}a_key_in_a_giant_file_or_line_is_cheap",
            f"{PROTOCOL}bad_input.py::test_a_document_of_50_megabytes_gets_a_suggestion",
            f"{PROTOCOL}bad_input.py::test_typing_in_a_line_of_two_million_characters_goes_on",
        ],
    ),
    Promise(
        "A bug in a handler: an empty answer, one line in the log, no pop-up",
        [
            f"{PROTOCOL}bad_input.py::"
            "test_a_fault_at_any_stage_is_an_empty_answer_and_one_line_in_the_log"
        ],
    ),
    Promise(
        "Out of memory: said so, and the process lives",
        [
            f"{ENGINE}worker.py::test_free_memory_is_given_back_when_nobody_asks",
            "model/cpu/test_quantized_linear.py::"
            "test_a_model_larger_than_memory_is_refused_with_figures",
            "model/placement/test_placed_heads.py::test_a_device_without_room_is_named",
            "model/test_errors.py::test_a_process_without_memory_says_so",
            "model/test_errors.py::test_an_engine_whose_connections_get_no_memory_ends",
        ],
    ),
    Promise(
        "A leak: less than 1% over 48 hours' worth of requests; folders keep their budgets",
        [
            "storm/test_long_life.py::test_of_48_hours_nothing_is_left_but_what_has_a_budget",
            f"{PROTOCOL}status.py::"
            "test_memory_is_given_back_when_nobody_types_and_when_a_document_is_closed",
        ],
        "run by `make test-storm`",
    ),
    Promise(
        "Weights truncated, altered or absurd: refused with a clear text, before they take memory",
        [
            f"{WEIGHTS}refused_folders.py::test_a_broken_folder_is_refused_with_the_remedy",
            f"{WEIGHTS}refused_folders.py::"
            "test_a_flipped_bit_in_the_header_is_noticed_or_changes_nothing",
            f"{WEIGHTS}refused_folders.py::test_a_header_of_a_million_tensors_is_refused_unread",
            f"{WEIGHTS}refused_gguf.py::test_altered_bytes_are_refused",
            f"{WEIGHTS}refused_gguf.py::test_what_would_fill_the_memory_is_refused_unread",
            f"{WEIGHTS}bad_weights.py::test_a_model_is_refused_in_every_precision",
            f"{WEIGHTS}refused_folders.py::test_a_weight_that_cannot_be_is_refused",
            f"{WEIGHTS}refused_folders.py::test_a_model_that_computes_no_numbers_says_so",
            "model/catalogue/test_installed.py::"
            "test_what_other_programs_fetched_is_checked_once_by_its_name",
        ],
    ),
    Promise(
        "A cache on disk altered, stale, full or of another user: a miss; atomic writes, budget",
        [
            f"{DISK}a_damaged_file_is_a_miss_and_goes",
            f"{DISK}a_block_of_another_text_is_no_good",
            f"{DISK}another_model_or_version_is_another_key",
            f"{DISK}a_file_is_safetensors_and_the_users_alone",
            f"{DISK}another_users_file_or_folder_is_not_used",
            f"{DISK}a_write_that_fails_leaves_nothing_and_is_said_once",
            f"{DISK}the_budget_drops_what_was_used_least_recently_of_any_model",
            f"{DISK}two_stores_write_and_drop_at_once",
            f"{DISK}what_a_killed_process_left_is_cleared_away_in_time",
        ],
    ),
    Promise(
        "A cached answer differs from a fresh one",
        [
            "model/prefix_cache/test_memory.py::test_cached_is_fresh_at_every_split",
            "model/prefix_cache/test_memory.py::test_a_warm_cache_gives_what_a_cold_one_gives",
            f"{DISK}a_restored_prefix_gives_what_the_one_in_memory_gives",
        ],
    ),
    Promise(
        "Half a character: never shown, whatever the document holds",
        [
            "model/test_tokenizer.py::"
            "test_every_text_cut_at_every_token_shows_whole_characters_only",
            f"{SHAPES}characters",
        ],
    ),
    Promise(
        "Secrets in files: by name, by link and by `.fimlsignore`; no suggestion, no prompt",
        [
            f"{SECRETS}the_engine_never_hears_of_a_secret_file",
            f"{SECRETS}the_engine_never_hears_of_an_ignored_file",
            f"{SECRETS}links_and_ignore_files",
            f"{SECRETS}what_cannot_be_read_counts_as_secret",
            f"{SECRETS}a_new_ignore_file_counts_soon",
            f"{MASKS}names_of_secret_files",
            f"{MASKS}names_of_other_files",
            "lsp_server/commands/test_secret_files.py::test_a_secret_file_makes_no_prompt",
        ],
    ),
    Promise(
        "Secrets in texts: none in a prompt (sent, kept in memory or on disk), a suggestion, "
        "the log or \u201cWhy?\u201d; ordinary code is left alone",
        [
            f"{SECRETS}no_prompt_holds_a_secret",
            f"{SECRETS}where_a_secret_is_being_typed_nothing_is_asked",
            f"{SECRETS}a_suggestion_with_a_secret_is_hidden",
            f"{SECRETS}the_log_holds_no_secret",
            f"{COMPLETION}secrets_stored.py::test_no_file_holds_a_secret",
            f"{MASKS}a_secret_is_written_over",
            f"{MASKS}while_a_secret_is_typed_next_to_nothing_of_it_is_seen",
            f"{MASKS}ordinary_code_is_left_alone",
            f"{MASKS}parts_of_a_secret_that_is_edited_stay_written_over",
            f"{MASKS}typing_elsewhere_does_not_change_the_mask",
            f"{SECRETS}what_is_left_of_a_secret_stays_secret",
        ],
    ),
    Promise(
        "A link, a FIFO, a device, a link to a key: regular files only, with a size limit",
        [
            f"{SECRETS}what_cannot_be_read_counts_as_secret",
            f"{SECRETS}a_disk_that_does_not_answer_is_asked_once",
            f"{WEIGHTS}refused_gguf.py::test_what_is_no_file_is_no_model",
            f"{WEIGHTS}refused_gguf.py::test_what_is_no_file_in_a_folder_is_refused",
            f"{WEIGHTS}refused_gguf.py::test_loading_waits_for_no_fifo",
            f"{COMPLETION}attribution.py::"
            "test_what_becomes_of_the_file_later_holds_no_suggestion_up",
            "model/catalogue/test_installed.py::test_a_cache_of_fifos_holds_nobody_up",
            f"{COMPLETION}attribution.py::test_a_disk_that_does_not_answer_holds_no_suggestion_up",
            "lsp_server/session/test_reading_models.py::test_no_file_of_a_model_is_read_on_the_loop",
            f"{PROTOCOL}models.py::test_a_settings_file_that_is_a_fifo_stops_nothing",
            f"{DISK}what_is_no_private_file_is_a_miss",
        ],
    ),
    Promise(
        "Characters that cannot be seen: not in suggestions unless the text has them; escaped in "
        "names of files",
        [
            f"{SHAPES}characters",
            f"{SHAPES}what_cannot_be_seen",
            f"{SHAPES}for_a_terminal",
            "lsp_server/commands/test_secret_files.py::"
            "test_a_message_about_an_odd_name_is_safe_for_a_terminal",
        ],
    ),
    Promise(
        "A repository steers settings: model, device and endpoint never come from a workspace, and "
        "its `.fimlsignore` only takes away",
        [
            "lsp_server/test_settings.py::test_a_workspace_cannot_choose_model_device_or_endpoint",
            "lsp_server/session/test_session_settings.py::"
            "test_a_workspace_decides_neither_model_nor_endpoint",
            f"{SECRETS}links_and_ignore_files",
        ],
    ),
    Promise(
        "The network: stdio and a private socket by default",
        [
            f"{ENGINES}local.py::test_only_this_user_can_reach_the_engine",
            f"{ENGINES}loopback.py::test_who_can_read_the_file_is_answered_and_nobody_else",
            f"{ENGINES}loopback.py::test_an_address_that_may_be_anybodys_is_not_asked",
            "lsp_server/test_no_network.py::test_the_product_runs_in_a_namespace_without_a_network",
            "lsp_server/test_no_network.py::"
            "test_no_process_of_the_product_opens_a_socket_beyond_its_folder",
        ],
    ),
    Promise(
        "Code from a hub: safetensors and GGUF only, never a pickle, never code of a folder",
        [
            f"{WEIGHTS}refused_folders.py::test_pickled_weights_are_refused_and_never_opened",
            f"{WEIGHTS}refused_folders.py::test_code_in_a_folder_is_never_run",
        ],
    ),
]
MORE = [
    Promise(
        "Machine code from a cache folder that others can write to is not run",
        [
            "model/cpu/test_code_cache.py::"
            "test_a_file_that_others_can_have_written_is_not_believed",
            "model/cpu/test_code_cache.py::test_the_way_to_the_code_is_private_too",
        ],
    ),
    Promise(
        "An engine on a network port: strangers keep nobody out; keys, addresses and certificates "
        "are checked",
        [
            f"{ENGINE}network_port.py::test_strangers_do_not_keep_out_who_has_the_key",
            f"{ENGINE}network_port.py::test_a_wrong_key_of_any_bytes_is_refused_and_the_connection_closed",
            f"{ENGINE}network_port.py::test_a_key_that_cannot_be_one_is_refused",
            f"{ENGINE}network_port.py::test_who_has_the_key_cannot_open_connections_without_end",
            f"{ENGINE}network_port.py::test_what_is_no_address_is_named",
            f"{ENGINE}network_port.py::test_a_certificate_that_cannot_be_used_is_named",
        ],
    ),
    Promise(
        "One large prompt keeps nobody else waiting",
        [
            f"{ENGINE}limits.py::test_a_body_longer_than_any_request_is_refused_unread",
            f"{ENGINE}limits.py::test_others_are_answered_while_a_text_is_made_into_tokens",
        ],
    ),
    Promise(
        "No home, or one that cannot be written: suggestions come all the same",
        [
            "lsp_server/test_folders.py::"
            "test_without_a_home_all_lies_in_a_private_folder_for_temporary_files",
            "lsp_server/test_folders.py::"
            "test_a_home_that_cannot_be_written_costs_the_log_and_not_the_sockets",
        ],
    ),
    Promise(
        "An endpoint that fails is named with its remedy, once for each cause",
        [
            f"{PROTOCOL}trouble.py::test_an_endpoint_that_refuses_is_named_once_with_the_remedy",
            f"{PROTOCOL}trouble.py::test_an_explicit_request_is_always_answered_in_words",
            f"{PROTOCOL}trouble.py::test_a_certificate_that_is_not_trusted_names_the_setting",
            f"{ENGINES}http.py::test_an_endpoint_is_asked_through_the_proxy",
        ],
    ),
    Promise(
        "Logs are private, small and sparing; a FIFO in the place of one is not waited for",
        [
            f"{ENGINE}log.py::test_a_log_is_private_whatever_the_umask",
            f"{ENGINE}log.py::test_what_is_no_file_is_no_log_and_is_not_waited_for",
            f"{ENGINE}log.py::test_a_log_is_renamed_when_it_is_large_by_whoever_notices",
            f"{ENGINE}log.py::test_what_comes_often_is_counted",
            f"{ENGINE}log.py::test_a_record_is_one_line_whatever_a_path_in_it_holds",
        ],
    ),
]
SECTIONS = {"What users of such tools have met": FAULTS, "What an attack on fimls has found": MORE}


def page() -> str:
    return markdown(TITLE, ABOUT, SECTIONS)


def test_each_promise_is_held_by_tests_that_exist() -> None:
    assert missing_tests(promise for section in SECTIONS.values() for promise in section) == []


def test_the_page_is_current() -> None:
    assert PAGE.read_text("utf-8") == page()


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
