//! The table of weights: `policy/weights.toml`, built in, and what the operator changed of it.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Level;
use crate::finding::Id;

/// The shipped table.
const SHIPPED: &str = include_str!("../../policy/weights.toml");

/// What is known about an id.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weight {
    /// podsec metric weight.
    pub weight: u32,
    /// Level; without one the ranges judge the weight.
    pub level: Option<Level>,
    /// One line: what the finding means.
    pub meaning: String,
    /// One line: what to do.
    pub remedy: String,
}

/// One entry of an operator's table: what is not named stays as shipped.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    weight: Option<u32>,
    level: Option<Level>,
    meaning: Option<String>,
    remedy: Option<String>,
}

/// Changes to the table, as read from an operator's file; ids are known to be ids.
#[derive(Default, Deserialize)]
#[serde(try_from = "BTreeMap<String, Change>")]
pub struct WeightChanges(BTreeMap<String, Change>);

impl TryFrom<BTreeMap<String, Change>> for WeightChanges {
    type Error = String;

    fn try_from(changes: BTreeMap<String, Change>) -> Result<WeightChanges, String> {
        let shipped = Weights::shipped();
        match changes.keys().find(|id| shipped.find(id).is_none()) {
            Some(unknown) => Err(format!("`{unknown}` is no finding id; `podsecctl explain` lists them")),
            None => Ok(WeightChanges(changes)),
        }
    }
}

/// Weight, level, meaning and remedy of every id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weights(BTreeMap<&'static str, Weight>);

impl Weights {
    /// The shipped table.
    pub fn shipped() -> Weights {
        let table: BTreeMap<String, Weight> =
            toml::from_str(SHIPPED).expect("policy/weights.toml is read by a unit test, so it is valid");
        let ids = crate::checks::ids();
        // An id is a name in the code; the table only describes it. A test holds the two equal.
        Weights(
            table
                .into_iter()
                .filter_map(|(name, weight)| Some((ids.iter().find(|id| id.0 == name)?.0, weight)))
                .collect(),
        )
    }

    /// Makes an operator's changes.
    pub fn change(&mut self, changes: WeightChanges) {
        for (name, change) in changes.0 {
            if let Some(entry) = self.0.get_mut(name.as_str()) {
                entry.weight = change.weight.unwrap_or(entry.weight);
                entry.level = change.level.or(entry.level);
                entry.meaning = change.meaning.unwrap_or_else(|| std::mem::take(&mut entry.meaning));
                entry.remedy = change.remedy.unwrap_or_else(|| std::mem::take(&mut entry.remedy));
            }
        }
    }

    /// Sets the level of one id.
    pub fn set_level(&mut self, id: Id, level: Level) {
        if let Some(entry) = self.0.get_mut(id.0) {
            entry.level = Some(level);
        }
    }

    /// The entry of an id.
    ///
    /// # Panics
    /// Never for an id of the code: a unit test proves that each of them has an entry.
    pub fn get(&self, id: Id) -> &Weight {
        self.0.get(id.0).expect("a unit test proves that every id has an entry")
    }

    /// The id of that name, with its entry.
    pub fn find(&self, name: &str) -> Option<(Id, &Weight)> {
        self.0.get_key_value(name).map(|(id, weight)| (Id(id), weight))
    }

    /// All ids, sorted, with their entries.
    pub fn iter(&self) -> impl Iterator<Item = (Id, &Weight)> {
        self.0.iter().map(|(id, weight)| (Id(id), weight))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_of_the_code_has_an_entry_and_every_entry_an_id() {
        let table: BTreeMap<String, Weight> = toml::from_str(SHIPPED).expect("valid");
        let mut ids: Vec<_> = crate::checks::ids().iter().map(|id| id.0).collect();
        ids.sort_unstable();
        assert_eq!(table.keys().map(String::as_str).collect::<Vec<_>>(), ids);
    }

    #[test]
    fn meaning_and_remedy_are_one_line_each() {
        for (id, weight) in Weights::shipped().iter() {
            for line in [&weight.meaning, &weight.remedy] {
                assert!(!line.is_empty() && !line.contains('\n'), "{id}");
            }
        }
    }

    #[test]
    fn nothing_shipped_reaches_every_terminal() {
        assert!(Weights::shipped().iter().all(|(_, weight)| weight.level != Some(Level::Crash)));
    }

    #[test]
    fn an_operator_changes_only_what_is_named() {
        let mut weights = Weights::shipped();
        let before = weights.find("kubeapi/client-error").expect("shipped").1.clone();
        weights.change(toml::from_str("[\"kubeapi/client-error\"]\nweight = 3\n").expect("valid"));
        let after = weights.find("kubeapi/client-error").expect("shipped").1;
        assert_eq!(*after, Weight { weight: 3, ..before });
    }

    #[test]
    fn an_unknown_id_is_refused_by_name() {
        let refused = toml::from_str::<WeightChanges>("[\"kubeapi/forbiden\"]\nweight = 3\n").err().expect("refused");
        assert!(refused.to_string().contains("`kubeapi/forbiden` is no finding id"), "{refused}");
    }
}
