//! `podsecd mail`: delivers frozen digests, as a process of its own with a network and without any capability.
//!
//! It knows the outbox and nothing else. What the server took is renamed; `podsecd` records that and removes it. Between
//! the server's answer and the renaming a kill makes the same bytes come twice, with the same Message-ID.

mod deliver;

use std::collections::HashMap;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::deliver::{Answer, deliver};
use crate::config::{self, Root};
use crate::report::digest::OUTBOX;
use crate::report::digest::outbox::Outbox;

/// After a delivery that failed: the first pause, and the longest. Each is twice as long as the one before.
const MIN_PAUSE: Duration = Duration::from_secs(5);
const MAX_PAUSE: Duration = Duration::from_secs(3600);
/// Between two looks for new digests while others wait.
const LOOK: Duration = Duration::from_secs(60);

/// What is known of a digest that was tried.
struct Tried {
    pause: Duration,
    due: Instant,
    /// The server refused it with its attachment.
    bare: bool,
}

/// Delivers what is in the outbox, the oldest first, and ends when nothing is left. A digest that cannot be delivered does
/// not keep the next from it.
///
/// # Errors
/// The configuration, an outbox that cannot be read, or another tree than the node's own.
pub fn run(config: Option<&Path>, root: &Root) -> Result<()> {
    let config = config::load(config, root)?;
    let directory = root.path(OUTBOX);
    if root.is_elsewhere() {
        bail!("with --root nothing leaves the tree: read the digests in {}", directory.display());
    }
    let outbox = Outbox::at(&directory);
    let mut tried: HashMap<u64, Tried> = HashMap::new();
    loop {
        let frozen = outbox.frozen().with_context(|| format!("cannot read {}", directory.display()))?;
        if frozen.is_empty() {
            return Ok(());
        }
        for number in frozen.iter().map(|frozen| frozen.number) {
            let now = Instant::now();
            let known = tried.entry(number).or_insert(Tried { pause: MIN_PAUSE, due: now, bare: false });
            if known.due > now {
                continue;
            }
            let message = std::fs::read(outbox.path(number)).context("cannot read a digest")?;
            match deliver(&message, known.bare, &config) {
                Answer::Taken => {
                    outbox.mark_sent(number).context("cannot mark a digest as sent")?;
                    tracing::info!(number, "the digest was delivered");
                }
                Answer::Refused(why) if known.bare => {
                    outbox.set_aside(number).context("cannot set a digest aside")?;
                    tracing::error!(number, why, "the digest is refused for good and set aside");
                }
                Answer::Refused(why) => {
                    known.bare = true;
                    tracing::warn!(number, why, "the digest is refused; it is tried once more without attachment");
                }
                Answer::Later(why) => {
                    tracing::warn!(number, why, pause = known.pause.as_secs(), "the digest cannot be delivered now");
                    known.due = Instant::now() + known.pause;
                    known.pause = (2 * known.pause).min(MAX_PAUSE);
                }
            }
        }
        let due = tried.iter().filter(|(number, _)| outbox.path(**number).exists()).map(|(_, tried)| tried.due).min();
        sleep(due.map_or(Duration::ZERO, |due| due.saturating_duration_since(Instant::now())).min(LOOK));
    }
}
