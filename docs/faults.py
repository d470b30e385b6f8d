"""What goes wrong, what follows from it, and the test that brings it about: docs/faults.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tap_stack import (
    ATTEMPTS,
    BODY_LIMIT,
    CLOCK_SKEW_SECONDS,
    CONNECT_TIMEOUT_SECONDS,
    DATABASE_SECONDS,
    FILES_TIMEOUT_SECONDS,
    GUARD_SECONDS,
    HTTP_API_SECONDS,
    LATE_SECONDS,
    PAGING_KEY_STALE_SECONDS,
    READ_TIMEOUT_SECONDS,
    READY_SECONDS,
    RESERVE_SECONDS,
    UPLOAD_SECONDS,
    WRITE_ATTEMPTS,
    TapStackArgs,
)

DEV = TapStackArgs(environment_suffix="dev")
API = f"{DEV.timeout_seconds - RESERVE_SECONDS} s"
FILES = f"{FILES_TIMEOUT_SECONDS - RESERVE_SECONDS} s"
EVENT = "three attempts of the event, in three minutes"
AT_ONCE, NOTHING, ALL_OR_NOTHING = "at once", "nothing", "all of a write or nothing"


class Fault(NamedTuple):
    """A row: alarms by their keys, tests by folder/file::name without test_; blanks between."""

    fault: str
    seen: str
    within: str
    stored: str
    alarms: str
    tests: str


#: What fails -> its faults.
FAULTS: dict[str, list[Fault]] = {
    "What the API calls": [
        Fault(
            f"DynamoDB throttles, fails, hangs up, stays silent, sends half a response or a changed one, fewer than {ATTEMPTS} times",
            "the right response", f"one attempt takes {CONNECT_TIMEOUT_SECONDS + READ_TIMEOUT_SECONDS} s at most",
            "each write once", "", "unit/faults::under_each_fault_a_caller_knows_and_the_table_holds_all_or_nothing unit/transport::it_does_what_the_sdk_does",
        ),
        Fault(
            f"the same, {ATTEMPTS} times", "503 with Retry-After", API, ALL_OR_NOTHING,
            "api-5xx items-read-throttles items-write-throttles",
            "unit/faults::under_each_fault_a_caller_knows_and_the_table_holds_all_or_nothing unit/transport::the_sdk_in_its_place_has_the_same_results_and_errors",
        ),
        Fault(
            "a response is lost after its write", "the right response; 503 if another write came after it", API,
            "the write, once; nothing is overwritten", "",
            "unit/items::a_write_whose_response_was_lost_is_not_taken_for_a_conflict unit/items::a_write_whose_response_was_lost_does_not_overwrite_what_came_after_it",
        ),
        Fault(
            "a write meets a transaction under way on its item", "503 with Retry-After", AT_ONCE, ALL_OR_NOTHING, "api-5xx",
            "unit/items::a_write_to_an_item_that_a_transaction_has_is_503",
        ),
        Fault(
            "a response is no HTTP, or ends too early", "as a connection that ends", API, ALL_OR_NOTHING, "api-5xx",
            "unit/transport::a_malformed_response_is_a_broken_connection",
        ),
        Fault(
            "a name is not resolved, TLS stands still", "503 with Retry-After", f"an attempt ends after {CONNECT_TIMEOUT_SECONDS} s", NOTHING, "api-5xx",
            "unit/transport::a_resolver_that_stands_still_has_a_deadline unit/transport::half_a_record_of_tls_has_a_deadline",
        ),
        Fault(
            "who answers cannot prove its name", "503 with Retry-After", API, "nothing; it is told nothing", "api-5xx",
            "unit/transport::who_cannot_prove_its_name_is_told_nothing",
        ),
        Fault(
            "DynamoDB and SSM stand still", "503 with Retry-After", API, ALL_OR_NOTHING, "api-5xx",
            "unit/transport::the_caller_is_answered_before_lambda_ends_the_function",
        ),
        Fault(
            "S3 is throttled, fails or stays silent, while a file is deleted or restored", "503 with Retry-After", API, "nothing, or the marker or the copy", "api-5xx",
            "unit/faults::when_s3_fails_a_caller_knows_and_nothing_is_changed unit/faults::what_s3_has_done_without_an_answer_is_503_and_can_be_repeated",
        ),
        Fault(
            "SSM is unavailable", "lists as before; then 503 with Retry-After", f"for {PAGING_KEY_STALE_SECONDS // 60} minutes", NOTHING, "api-5xx",
            "unit/paging::stale_keys_serve_while_ssm_is_away_and_then_no_more unit/paging::without_a_key_a_list_is_503_and_not_unsigned",
        ),
        Fault(
            "the key is disabled, a permission or a table is missing, credentials have expired, the clock is wrong for signatures",
            "500 without details", AT_ONCE, NOTHING, "api-5xx",
            "unit/faults::under_each_fault_a_caller_knows_and_the_table_holds_all_or_nothing unit/paging::a_key_that_may_not_be_read_is_500 local/keys::a_disabled_key_is_refused",
        ),
        Fault(
            "the daemon of X-Ray is slow, full or gone", "nothing", AT_ONCE, "no trace", "",
            "unit/tracing::whatever_the_daemon_is_calls_go_on unit/tracing::a_daemon_that_reads_nothing_is_not_waited_for",
        ),
    ],
    "The functions": [
        Fault(
            "the process of the api function dies at a call", "500 of the gateway; a repeated request is right", AT_ONCE, ALL_OR_NOTHING, "api-errors api-5xx",
            "unit/faults::a_process_that_dies_at_a_call_leaves_all_of_a_write_or_nothing",
        ),
        Fault(
            "the function is slower than it may be", "503 of the gateway", f"`timeout_seconds` and 1 s more, {HTTP_API_SECONDS + 1} s at most", ALL_OR_NOTHING, "api-duration api-5xx",
            "local/gateway::a_slow_function_is_given_up_and_the_log_says_so",
        ),
        Fault(
            "an unexpected exception", "500 without details, with the request's id", AT_ONCE, ALL_OR_NOTHING, "api-5xx",
            "unit/serverless_api::our_own_mistake_is_500_and_logged local/gateway::each_request_has_a_line_in_the_access_log",
        ),
        Fault(
            "there is no concurrency left", "503 of the gateway; events wait", AT_ONCE, NOTHING, "api-throttles claimed-concurrency",
            "local/concurrency::nothing_reserved_stops_the_function local/concurrency::versions_share_what_is_reserved_and_events_wait_for_it",
        ),
        Fault(
            "a container's clock is wrong", "right responses; `created_at` is the container's", AT_ONCE, "each write once", "",
            "unit/faults::a_container_whose_clock_is_wrong_loses_and_repeats_nothing",
        ),
        Fault(
            "a function with events is too slow, dies, or cannot be imported", "nobody waits", EVENT, "the event, in the dead-letter queue", "files-errors files-dead-letters",
            "local/destinations::an_event_whose_function_dies_is_not_lost_and_counts_as_an_error",
        ),
        Fault(
            "the dead-letter queue cannot be reached", "nobody waits", EVENT, "the event is in the log only", "files-destination-failures",
            "local/destinations::a_place_that_is_gone_is_counted local/destinations::an_event_is_delivered_with_the_rights_of_the_functions_role",
        ),
        Fault(
            "the rotation of the paging key fails, or SSM stands still", "lists as before", EVENT, "the key of before", "rotation-errors rotation-dead-letters",
            "unit/paging::rotation_waits_for_its_policy_and_fails_aloud_in_the_end unit/paging::rotation_fails_before_lambda_ends_it",
        ),
    ],
    "Callers": [
        Fault(
            "a token is missing, forged, expired, early, of another pool or client, an ID token", "401; 403 without the route's scope", AT_ONCE, NOTHING, "",
            "local/attacks::a_forged_token_gets_what_it_deserves local/attacks::what_is_no_bearer_token_opens_nothing local/attacks::a_token_in_another_place_is_none",
        ),
        Fault(
            "somebody asks for what is another's", "404, as for what is not there", AT_ONCE, NOTHING, "",
            "unit/items::nobody_sees_what_another_caller_does_with_the_same_ids_and_keys local/items::what_is_somebody_elses_is_not_there",
        ),
        Fault(
            "more requests than the throttle admits", "429", AT_ONCE, NOTHING, "",
            "local/gateway::beyond_a_stages_burst_a_route_answers_429_and_no_function_sees_it",
        ),
        Fault(
            "several write the same item at once", f"200 to one, 412 to who has If-Match; without it each takes effect, or is 409 after {WRITE_ATTEMPTS} attempts", API, "each write once or not at all", "",
            "local/items::of_many_writers_with_the_same_version_one_wins local/races::patches_without_a_condition_are_all_applied unit/items::patch_gives_up_with_409_when_it_never_gets_through",
        ),
        Fault(
            "a request is repeated under its Idempotency-Key", "the first response; 422 for another body", AT_ONCE, "one item", "",
            "local/races::of_many_creates_under_one_key_one_item_is_made unit/items::another_body_under_the_same_key_is_rejected",
        ),
        Fault(
            "a body is no JSON, deep, of another type or coding, has a name twice or a number that DynamoDB lacks", "400, 415 or 422 that names each mistake", AT_ONCE, NOTHING, "",
            "unit/any_request::no_request_fails unit/values::what_cannot_be_stored_exactly_is_rejected_with_a_reason local/contract::the_running_api_is_as_its_contract_says",
        ),
        Fault(
            f"a body has more than {BODY_LIMIT:,} bytes, an item more than DynamoDB takes", "413, the gateway's own if Lambda does not take it (6 MB)", AT_ONCE, NOTHING, "",
            "unit/serverless_api::a_body_above_the_limit_is_413_before_it_is_parsed unit/items::an_item_above_dynamodbs_limit_is_413 unit/values::the_largest_bodies_take_little_memory",
        ),
        Fault(
            "names of fields are expressions or reserved words", "the item, byte by byte", AT_ONCE, "the item", "",
            "unit/items::any_field_name_works local/items::every_value_survives_exactly",
        ),
        Fault(
            "the token of a page is changed, somebody else's, or of another list", "400", AT_ONCE, NOTHING, "",
            "unit/paging::no_forged_or_changed_token_opens unit/paging::a_token_opens_the_list_that_it_is_of_and_is_400_in_every_other",
        ),
        Fault(
            "a path has dots, bars, NUL, emoji, or leads elsewhere", "404, or 401 without a token", AT_ONCE, NOTHING, "",
            "local/items::an_odd_id_in_the_path_is_only_a_missing_item local/attacks::no_path_leads_around_the_token local/attacks::no_header_leads_around_the_token",
        ),
        Fault(
            "a request hides behind another, a text wants to be a header", "400; the text stays text", AT_ONCE, NOTHING, "",
            "local/attacks::no_request_hides_behind_another local/attacks::what_a_caller_sends_becomes_no_header local/attacks::the_name_of_a_file_becomes_no_header",
        ),
        Fault(
            "a page of another origin calls", "its browser shows it nothing", AT_ONCE, NOTHING, "",
            "local/attacks::a_page_elsewhere_reads_nothing local/attacks::a_page_that_may_read_gets_no_cookies_sent",
        ),
        Fault(
            "a form for an upload is used for another key, type, size, bucket, or changed", "400, 403 or 404 of S3", f"a form is good for {UPLOAD_SECONDS // 60} minutes", NOTHING, "",
            "local/attacks::a_form_is_good_for_nothing_else local/file_pipeline::s3_takes_the_content_whose_checksum_the_form_has",
        ),
    ],
    "Files": [
        Fault(
            "an event comes twice", "nobody waits", AT_ONCE, "each version once", "",
            "unit/file_pipeline::a_repeated_event_changes_nothing local/file_pipeline::repeated_and_reordered_events_change_nothing",
        ),
        Fault(
            "events of uploads and deletions come in any order, functions die in between", "nobody waits", EVENT, "the newest state is S3's, each version once", "files-errors",
            "unit/file_pipeline::the_table_is_right_after_any_order_repetition_and_crash unit/file_pipeline::deletions_are_right_after_any_order_repetition_and_crash",
        ),
        Fault(
            "S3 or DynamoDB throttle, fail, hang up, stay silent, send half a response", "nobody waits", EVENT, "each version once", "files-errors",
            "unit/faults::under_each_fault_an_event_is_recorded_or_fails_and_is_recorded_when_it_comes_again",
        ),
        Fault(
            "DynamoDB throttles for longer, transactions meet", "nobody waits", f"an attempt goes on for {FILES}", "each version once", "files-write-throttles",
            "unit/file_pipeline::what_dynamodb_cannot_take_yet_is_tried_as_long_as_the_invocation_has_time unit/bursts::no_file_of_a_burst_is_lost_in_any_environment",
        ),
        Fault(
            "S3 stands still", "nobody waits", FILES, "each version once", "files-errors",
            "unit/file_pipeline::an_object_that_s3_does_not_give_fails_before_lambda_ends_the_function",
        ),
        Fault(
            "an object is gone before it is read", "GET shows the failure", AT_ONCE, "the version with the reason, in no total", "",
            "unit/file_pipeline::an_object_that_is_gone_is_recorded_as_failed local/file_pipeline::a_deleted_version_leaves_a_failed_record",
        ),
        Fault(
            "a version is deleted while it is recorded", "nobody waits", EVENT, "the deletion, after the version", "files-errors",
            "unit/file_pipeline::a_version_that_is_deleted_while_it_is_recorded_is_not_stored unit/file_pipeline::a_deletion_waits_for_the_upload_that_is_under_way",
        ),
        Fault(
            "the clocks of S3 and Lambda differ", "nobody waits", f"up to {CLOCK_SKEW_SECONDS} s", "each version once", "",
            "unit/file_pipeline::a_deletion_waits_although_the_clocks_of_s3_and_lambda_differ",
        ),
        Fault(
            "a record is malformed, an event is poison", "nobody waits", EVENT, "the other records; the event, in the dead-letter queue", "files-errors files-dead-letters files-async-events-dropped",
            "unit/file_pipeline::a_malformed_record_fails_and_does_not_hold_back_the_others local/file_pipeline::a_poison_event_ends_in_the_queue_and_can_be_put_back",
        ),
        Fault(
            "a body was cut, an object is archived, empty or very large", "GET has what is known", AT_ONCE, "the version; no more than its head is read", "",
            "unit/file_pipeline::a_body_that_was_cut_is_an_error_and_tried_again unit/file_pipeline::no_more_than_the_head_of_a_large_object_is_read unit/file_pipeline::an_archived_object_is_recorded_without_being_read",
        ),
        Fault(
            "a key has blanks, plus signs, percent signs, dots, emoji", "the key as it is", AT_ONCE, "the key as it is", "",
            "unit/file_pipeline::a_key_is_opaque local/file_pipeline::any_key_is_recorded_as_it_is",
        ),
        Fault(
            "more events than the function takes", "nobody waits", "they wait for six hours", "each version once", "files-async-event-age",
            "local/file_pipeline::a_burst_is_recorded_exactly_once unit/bursts::files_were_lost_when_the_function_gave_up_at_once",
        ),
        Fault(
            "dead letters are redriven, and it is stopped or killed", "how to go on", AT_ONCE, "no letter is lost or doubled", "files-dead-letters",
            "unit/redrive::one_that_was_stopped_goes_on_without_losing_or_doubling_a_letter unit/redrive::one_that_is_left_early_releases_what_it_received",
        ),
        Fault(
            "the consumer of events or its emulator is killed", "nobody waits", AT_ONCE, "each word once", "",
            "local/file_events::each_recorded_version_has_its_words_once_after_a_kill",
        ),
    ],
    "Releases and the web environment": [
        Fault(
            "a new version is bad", "its share of the requests fails", "the canary's minutes", "the version of before is live", "api-5xx api-errors",
            "local/releases::a_bad_release_is_taken_back_and_says_why unit/releases::no_bad_version_is_promoted_however_late_metrics_are",
        ),
        Fault(
            "a release is killed at any of its changes", "nothing", f"its share ends {(LATE_SECONDS + GUARD_SECONDS) // 60} minutes and `canary_minutes` after it began", "the version of before is live, or the new one", "",
            "unit/releases::whatever_is_released_and_wherever_it_is_killed local/releases::kills_during_the_share_lose_no_request unit/releases::the_guard_ends_what_a_killed_release_left",
        ),
        Fault(
            "a version cannot be imported", "nothing", "before it gets traffic", "the version of before is live", "",
            "unit/releases::a_version_that_cannot_be_called_gets_no_traffic local/releases::every_function_has_probes_that_a_broken_version_fails",
        ),
        Fault(
            "the database is down, restarts or fails over", "503 with Retry-After after that; health checks are answered", f"{DATABASE_SECONDS} s", "what was confirmed", "web-5xx",
            "local/web_application::a_crash_of_the_database_under_load_loses_nothing local/web_application::health_never_fails_while_many_clients_wait_for_a_database_that_is_down local/web_environment::a_standby_takes_over_under_load",
        ),
        Fault(
            "an instance fails or is interrupted, or its template", "nothing", f"{READY_SECONDS // 60} minutes for a silent one", "what was confirmed", "web-unhealthy web-instances",
            "local/web_environment::an_instance_is_replaced_when_somebody_says_so local/web_environment::a_spot_instance_is_interrupted_and_nobody_notices local/web_environment::versions_roll_under_load_and_a_bad_one_goes_back",
        ),
        Fault(
            "RDS refuses a snapshot, or stands still", "nobody waits", EVENT, "the snapshots of before, but those that are too old", "snapshots-errors snapshot-missing",
            "unit/snapshots::a_snapshot_that_cannot_be_taken_fails_after_the_old_ones_are_gone unit/snapshots::rds_that_stands_still_does_not_outlast_the_function",
        ),
    ],
    "The local cloud": [
        Fault(
            "`up` is killed at any step", "the next `up` goes on", AT_ONCE, "what was deployed", "",
            "local/engine::a_run_killed_at_any_step_is_finished_by_the_next local/engine::a_change_killed_at_any_step_is_finished_by_the_next local/changes::killed_changes_end_as_the_last_settings_say",
        ),
        Fault(
            "the emulator is killed", "the next command starts it", AT_ONCE, "all data but those of the last moment", "",
            "local/data::data_outlives_a_killed_emulator local/data::what_is_lost_is_said_before_anything_is_done",
        ),
        Fault(
            "the disk is full", "one line that names the file", AT_ONCE, "what was stored before, and after there is room", "",
            "unit/state::a_journal_whose_disk_was_full_for_a_moment_has_all_other_changes unit/state::a_state_that_does_not_fit_leaves_the_one_before "
            "local/data::what_a_full_disk_did_not_take_is_saved_when_there_is_room",
        ),
        Fault(
            "a setting has any value at all", "an error that names it", "before any resource", NOTHING, "",
            "unit/settings::any_value_makes_settings_or_errors_that_name_them stack/settings::a_wrong_setting_stops_the_program_before_any_resource",
        ),
    ],
}  # fmt: skip


def named_tests(fault: Fault) -> dict[str, str]:
    """The names of a fault's tests -> their files."""
    found = (each.partition("::") for each in fault.tests.split())
    return {
        f"test_{name}": "tests/{}/test_{}.py".format(*where.split("/")) for where, _, name in found
    }


def rows() -> Iterator[str]:
    """A table for each part of the stack."""
    for part, faults in FAULTS.items():
        yield f"## {part}"
        yield ""
        yield "| fault | what the caller sees | within | what is stored | alarm | tests |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for each in faults:
            alarms = ", ".join(f"[{key}](operations.md#{key})" for key in each.alarms.split())
            shown = (
                f"[{name.removeprefix('test_').replace('_', ' ')}](../{path})"
                for name, path in named_tests(each).items()
            )
            yield f"| {' | '.join(each[:4])} | {alarms} | {'; '.join(shown)} |"
        yield ""
