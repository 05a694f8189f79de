//! The table of figures.

use std::fmt::Write;

/// What a figure must be.
#[derive(Clone, Copy)]
pub(crate) enum Bound {
    /// At least this, and this is aimed at.
    AtLeast(f64, f64),
    /// At most this.
    AtMost(f64),
}

/// A line of the table.
pub(crate) struct Figure {
    /// What was measured.
    pub(crate) what: String,
    /// Ours, with its unit.
    pub(crate) ours: String,
    /// What it is compared with, with its unit.
    pub(crate) peer: String,
    /// What is judged.
    pub(crate) ratio: f64,
    /// How it is judged.
    pub(crate) bound: Bound,
}

/// The figures so far, and what is to be said about them.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<[String; 7]>,
    notes: Vec<String>,
}

impl Table {
    /// Adds a line.
    pub(crate) fn add(&mut self, figure: Figure) {
        let Figure { what, ours, peer, ratio, bound } = figure;
        let (required, aim, met) = match bound {
            Bound::AtLeast(least, aim) => (format!(">= {least}"), format!("{aim}"), ratio >= least),
            Bound::AtMost(most) => (format!("<= {most}"), "-".to_owned(), ratio <= most),
        };
        let verdict = match bound {
            _ if !met => "MISSED",
            Bound::AtLeast(_, aim) if ratio < aim => "met, below the aim",
            _ => "met",
        };
        self.rows.push([what, ours, peer, format!("{ratio:.2}"), required, aim, verdict.to_owned()]);
    }

    /// Adds a line of text below the table.
    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Prints it.
    #[expect(clippy::print_stdout, reason = "the table is what this program is for")]
    pub(crate) fn print(&self) {
        let head = ["what", "ours", "peer", "ratio", "required", "aim", "verdict"].map(ToOwned::to_owned);
        let rows: Vec<_> = std::iter::once(&head).chain(&self.rows).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 7] = std::array::from_fn(width);
        let mut text = String::new();
        for row in rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(widths) {
                let _ = write!(line, "{cell:<width$}  ");
            }
            text += line.trim_end();
            text += "\n";
        }
        for note in &self.notes {
            text += &format!("{note}\n");
        }
        print!("{text}");
    }
}

/// The middle one.
pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 50)
}

/// The value that so many of a hundred do not exceed; 0 of none.
pub(crate) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0.0)
}
