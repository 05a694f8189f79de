//! Tests on a real node, with systemd as PID 1 (see `node.rs`). Without root they are skipped and say why.

mod basics;
mod containers;
mod controlplane;
mod forwards;
mod handover;
mod images;
mod kubeapi;
mod mail;
mod node;
mod package;
mod podsec;
mod policy;
mod sums;
mod takeover;
mod tamper;
mod unit;

use libtest_mimic::{Arguments, Trial};

macro_rules! trials {
    ($($trial:path,)*) => { &[$((stringify!($trial), $trial as fn())),*] };
}

/// One line for each trial. The compiler's warning of dead code tells of one that is missing here.
const TRIALS: &[(&str, fn())] = trials! {
    basics::boots_with_no_failed_unit,
    basics::delivers_mail_to_root,
    basics::reads_its_journal,
    containers::what_a_container_does_is_told_with_container_image_user_and_path,
    containers::the_exit_code_of_every_container_is_told,
    containers::an_exit_code_that_was_missed_is_the_one_in_the_users_journal,
    containers::a_stop_while_podsecd_is_restarted_is_told_once_with_its_exit_code,
    containers::a_stop_just_before_podsecd_ends_is_told_once,
    containers::what_a_container_did_that_is_gone_by_the_restart_is_told_with_whose_it_was,
    containers::an_end_that_conmon_cannot_tell_is_told_by_the_containers_control_group,
    controlplane::a_control_plane_that_runs_has_metric_0_and_each_part_that_goes_is_missed,
    controlplane::units_that_end_are_told_and_started_again_only_if_that_is_wanted,
    controlplane::who_runs_as_real_root_is_told,
    forwards::a_node_as_podsec_sets_it_up_has_metric_0_and_is_idle,
    forwards::every_forward_answers_again_after_twenty_kills_of_rootlesskit_under_traffic,
    forwards::what_is_interrupted_while_nobody_looks_after_it_has_a_gap_too,
    forwards::a_strangers_port_is_told_with_who_has_it_and_never_taken_from_him,
    forwards::a_zombie_is_removed_and_added_again,
    forwards::forwards_of_udp_and_ipv6_are_like_others,
    forwards::a_rootlesskit_that_takes_no_forwards_is_one_condition,
    forwards::a_second_podsecd_u7s_does_not_start,
    forwards::an_api_that_hangs_lies_or_closes_is_one_condition_and_no_spin,
    forwards::node_ports_come_and_go_with_their_services_and_stay_while_the_api_is_away,
    forwards::podsecd_says_what_u7s_admins_user_id_offers_and_that_its_helper_is_silent,
    forwards::what_happens_while_podsecd_is_down_is_told_when_it_is_there_again,
    forwards::its_exposure_is_at_most_two,
    handover::what_came_and_went_while_nobody_ran_is_told_once,
    handover::each_file_that_comes_while_podsecd_is_restarted_is_told_once,
    handover::what_systemd_keeps_is_taken_over_or_given_back,
    handover::what_changes_while_the_configuration_does_is_told_once,
    handover::whoever_ends_before_all_is_looked_through_loses_nothing,
    handover::a_journald_that_is_away_at_the_end_costs_nothing,
    kubeapi::an_event_is_in_journal_and_forbidden_log,
    kubeapi::without_podsec_forbidden_log_is_podsecds_own,
    kubeapi::every_one_of_a_hundred_thousand_refusals_is_in_the_journal,
    kubeapi::events_wait_for_a_journald_that_is_away_and_the_mail_says_that_it_is,
    mail::a_refusal_is_in_roots_mailbox_and_leaves_forbidden_log,
    mail::digests_wait_for_a_mail_system_that_is_down,
    mail::its_exposure_is_at_most_two,
    mail::without_a_mail_system_that_is_a_condition_with_its_remedy,
    mail::postfixs_sendmail_takes_digests_where_a_drop_in_gives_its_group,
    mail::a_test_alert_reaches_journal_status_and_mailbox,
    mail::only_root_and_the_group_podsecd_reach_the_control_socket,
    mail::strangers_cannot_report,
    mail::a_refused_digest_is_reported_with_the_servers_reason_and_can_be_tried_again,
    package::what_is_installed_is_whole_starts_nothing_and_leaves_what_was_changed,
    package::an_upgrade_loses_nothing_and_tells_nothing_twice,
    policy::podsecs_own_setup_has_metric_0_and_no_alarm,
    policy::what_is_loosened_is_in_the_journal_and_cleared_when_it_is_undone,
    images::a_signed_image_is_told_with_its_user_name_and_digest_and_is_no_alarm,
    images::pulling_a_signed_image_again_and_again_is_no_alarm,
    images::an_image_that_is_signed_once_more_is_no_alarm,
    images::what_the_policy_does_not_let_in_is_in_the_journal_within_a_second,
    sums::each_line_violated_alone_has_its_weight_and_all_together_the_sum,
    takeover::it_switches_tells_what_podsec_inotify_did_not_and_goes_back,
    takeover::what_has_no_match_is_read_from_the_oldest_backup_and_a_step_that_fails_is_repeated,
    tamper::whatever_is_done_to_the_files_of_a_container_is_told_and_nothing_else,
    tamper::a_database_and_a_web_server_are_no_alarm,
    tamper::what_podman_does_itself_is_no_flood,
    tamper::a_package_that_is_installed_is_tens_of_lines,
    tamper::a_hostile_tree_hides_nothing_and_costs_little,
    tamper::a_container_that_takes_all_watches_gives_them_back_to_others,
    unit::its_exposure_is_at_most_one,
    unit::it_starts_reloads_restarts_and_stops,
    unit::a_wrong_configuration_is_not_tried_again,
    unit::what_the_readme_says_of_the_first_five_minutes_works,
    unit::a_worker_misses_no_audit_log,
    unit::it_comes_back_when_it_is_killed,
    unit::it_waits_for_room_on_a_full_disk,
};

fn main() {
    let arguments = Arguments::from_args();
    let missing = node::Node::missing();
    // Not on standard output: nextest reads our list there.
    if let Some(reason) = &missing {
        eprintln!("tests on the node are skipped: {reason}");
    }
    let trial = |&(name, run): &(&str, fn())| {
        let run = move || {
            run();
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(missing.is_some())
    };
    libtest_mimic::run(&arguments, TRIALS.iter().map(trial).collect()).exit();
}
