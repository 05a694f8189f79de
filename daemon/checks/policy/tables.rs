//! TOML as the container tools read it (github.com/BurntSushi/toml): upper and lower case are the same in keys.

use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// Reads TOML.
///
/// # Errors
/// Line, where one is known, and reason, in one text.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let wrong = |error: toml::de::Error| {
        let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        line.map_or_else(String::new, |line| format!("line {line}: ")) + error.message()
    };
    // Behind an escape there may be any letter.
    if text.chars().all(|character| character != '\\' && fold(character) == character) {
        return toml::from_str(text).map_err(wrong);
    }
    let table = fold_keys(toml::from_str(text).map_err(wrong)?)?;
    // Types are wrong where they are wrong in the text, which knows the lines.
    table.try_into().map_err(|error| toml::from_str::<T>(text).err().map_or_else(|| wrong(error), wrong))
}

/// A letter in the case that stands for all (Go's `strings.EqualFold`).
fn fold(character: char) -> char {
    match character {
        'ſ' => 's',
        other => {
            let mut lower = other.to_lowercase();
            let first = lower.next();
            first.filter(|_| lower.next().is_none()).unwrap_or(other)
        }
    }
}

fn fold_keys(table: Table) -> Result<Table, String> {
    let mut folded = Table::new();
    for (key, value) in table {
        let key: String = key.chars().map(fold).collect();
        if folded.contains_key(&key) {
            return Err(format!("`{key}` stands twice, in upper and lower case"));
        }
        folded.insert(key, fold_value(value)?);
    }
    Ok(folded)
}

fn fold_value(value: Value) -> Result<Value, String> {
    Ok(match value {
        Value::Table(table) => Value::Table(fold_keys(table)?),
        Value::Array(list) => Value::Array(list.into_iter().map(fold_value).collect::<Result<_, _>>()?),
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct File {
        storage: Section,
    }

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Section {
        root: String,
    }

    #[test]
    fn keys_are_the_same_in_upper_and_lower_case_and_values_are_not() {
        for (text, expected) in [
            ("[storage]\nroot = \"x\"", Ok("x")),
            ("[Storage]\nROOT = \"Xy\"", Ok("Xy")),
            ("[\"ſtorage\"]\nroot = \"x\"", Ok("x")),
            ("[storage]\nroot = \"x\"\nRoot = \"y\"", Err("`root` stands twice, in upper and lower case")),
            ("[storage]\nroot = \"A\"\nroot = 1", Err("line 3: duplicate key")),
            ("# A\n[storage]\nroot = 1", Err("line 3: invalid type: integer `1`, expected a string")),
            ("[storage]\n= 1", Err("line 2: ")),
        ] {
            let read = parse::<File>(text.as_bytes()).map(|file| file.storage.root);
            match (read, expected) {
                (Ok(root), Ok(expected)) => assert_eq!(root, expected, "{text}"),
                (Err(error), Err(expected)) => assert!(error.starts_with(expected), "{text}: {error}"),
                (read, _) => panic!("{text}: {read:?}"),
            }
        }
    }
}
