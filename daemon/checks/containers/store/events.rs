//! Takes in what is told of a store's layers.

use std::collections::BTreeMap;

use crate::checks::containers::change::What;
use crate::checks::containers::class::Class;
use crate::checks::containers::gather::{Key, Thing};
use crate::checks::containers::layer::Watched;
use crate::checks::containers::record::Record;
use crate::checks::containers::scarcity::Cover;
use crate::checks::containers::walks::Walks;
use crate::watch::tree::{Event, Moment, NO_WATCHES, Root};

/// Takes in an event.
pub(super) fn note(
    event: Event<'_>,
    layers: &mut BTreeMap<Root, Watched>,
    (walks, record): (&mut Walks, &mut Record),
    (drained, complete): (Moment, Moment),
) {
    match event {
        Event::Changed(entry) => {
            if let Some(layer) = layers.get_mut(&entry.root).filter(|layer| !layer.is_gone) {
                let is_sought = walks.seeking.contains(&entry.walk);
                // What a walk finds may have happened long ago.
                let since = if entry.walk == 0 { drained } else { complete };
                layer.note(entry, since, is_sought, record);
            }
        }
        // If the lists do not say so, too, somebody else did that.
        Event::Gone(root) => {
            if let Some(layer) = layers.get_mut(&root).filter(|layer| !layer.is_gone) {
                let key = Key { what: What::Removed, class: Class::Other, thing: Thing::File };
                layer.gather(key, (b"", b""), false, drained);
                walks.vanished.insert(root);
            }
        }
        Event::Lost => walks.lost = true,
        Event::Untold(count) => walks.untold += count,
        Event::Doubted(root) => {
            walks.doubted.insert(root);
            // What the walk before dropped may be older than that walk.
            if let Some(layer) = layers.get_mut(&root) {
                layer.looked = layer.former.take().or(layer.looked);
            }
        }
        Event::Uncovered(root, more) => {
            if let Some(layer) = layers.get_mut(&root) {
                let is_walked = walks.outstanding.contains_key(&root);
                let place = if is_walked { &mut layer.pending } else { &mut layer.uncovered };
                let uncovered = place.get_or_insert_default();
                uncovered.count += more.count;
                uncovered.named.extend(more.named);
                uncovered.named.truncate(1);
                if uncovered.why != NO_WATCHES {
                    uncovered.why = more.why;
                }
                if uncovered.why == NO_WATCHES {
                    layer.looked.get_or_insert(complete);
                }
            }
        }
        Event::Walked(root, number) => {
            if walks.outstanding.get(&root) == Some(&number) {
                walks.outstanding.remove(&root);
                if let Some(layer) = layers.get_mut(&root) {
                    layer.uncovered = layer.pending.take().or_else(|| layer.cover.lacks());
                    let is_short = layer.uncovered.as_ref().is_some_and(|uncovered| uncovered.why == NO_WATCHES);
                    // Of one that gave watches back a walk looks at a part only.
                    if layer.cover == Cover::All && !walks.doubted.contains(&root) {
                        layer.former = layer.looked;
                        layer.looked = is_short.then_some(layer.walked);
                    }
                }
            }
        }
    }
}
