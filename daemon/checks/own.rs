//! Check `self`: what podsecd has to say about itself. Everybody may find something here, so only the ids are here.

/// The ids of check `self`; weights, meanings and remedies are in `policy/weights.toml`.
pub mod ids {
    use crate::finding::Id;

    /// Bytes in the audit log that are no event: a torn or too long line, a run of NULs.
    pub const AUDIT_LINE_UNREADABLE: Id = Id("self/audit-line-unreadable");
    /// A part of the audit log was removed before podsecd had read it.
    pub const AUDIT_LOST: Id = Id("self/audit-lost");
    /// Condition: there is no audit log, or it cannot be read.
    pub const AUDIT_LOG_UNAVAILABLE: Id = Id("self/audit-log-unavailable");
    /// Condition: not everything can be watched of a check.
    pub const WATCH_INCOMPLETE: Id = Id("self/watch-incomplete");
    /// Somebody else changed forbidden.log.
    pub const FORBIDDEN_LOG_CHANGED: Id = Id("self/forbidden-log-changed");
    /// Condition: forbidden.log cannot be written where it should be.
    pub const FORBIDDEN_LOG_UNAVAILABLE: Id = Id("self/forbidden-log-unavailable");
    /// Condition: the state directory cannot be written.
    pub const STATE_UNWRITABLE: Id = Id("self/state-unwritable");
    /// Condition: journald does not take what podsecd sends.
    pub const JOURNAL_UNAVAILABLE: Id = Id("self/journal-unavailable");
    /// Condition: a new configuration was refused; the former one is in force.
    pub const CONFIG_REFUSED: Id = Id("self/config-refused");
    /// Condition: a mail digest cannot be made.
    pub const DIGEST_FAILED: Id = Id("self/digest-failed");
    /// Condition: the mail system takes no digests.
    pub const MAIL_FAILING: Id = Id("self/mail-failing");
    /// A digest was refused for good, and is set aside.
    pub const MAIL_REFUSED: Id = Id("self/mail-refused");
    /// Condition: nothing on this node takes mail.
    pub const MAIL_UNCONFIGURED: Id = Id("self/mail-unconfigured");
    /// Condition: a helper that should be there says nothing.
    pub const HELPER_SILENT: Id = Id("self/helper-silent");
    /// `podsecctl test-alert`.
    pub const TEST_ALERT: Id = Id("self/test-alert");
    /// What podsecd-mail may report on.
    pub const OF_MAIL: &[Id] = &[MAIL_FAILING, MAIL_REFUSED, MAIL_UNCONFIGURED];
    /// Findings of a helper could not be reported.
    pub const FINDINGS_DROPPED: Id = Id("self/findings-dropped");
    /// What podsecd-u7s may report on.
    pub const OF_U7S: &[Id] = &[FINDINGS_DROPPED];
    /// A part of podsecd failed and was started again.
    pub const PART_FAILED: Id = Id("self/part-failed");

    /// All of them.
    pub const ALL: &[Id] = &[
        AUDIT_LINE_UNREADABLE,
        AUDIT_LOST,
        AUDIT_LOG_UNAVAILABLE,
        WATCH_INCOMPLETE,
        FORBIDDEN_LOG_CHANGED,
        FORBIDDEN_LOG_UNAVAILABLE,
        STATE_UNWRITABLE,
        JOURNAL_UNAVAILABLE,
        CONFIG_REFUSED,
        DIGEST_FAILED,
        MAIL_FAILING,
        MAIL_REFUSED,
        MAIL_UNCONFIGURED,
        HELPER_SILENT,
        TEST_ALERT,
        FINDINGS_DROPPED,
        PART_FAILED,
    ];
}
