//! Prints answers: tables for eyes, JSON and YAML for programs.

use std::io::Write;

use anyhow::Result;
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;

use super::args::{Global, Output};

/// A column: its header, and whether it holds numbers.
pub type Column = (&'static str, Align);

/// Where a column's text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Prints a value as the user asked: `table` draws it for eyes.
///
/// # Errors
/// Stdout is closed.
pub fn print<T: Serialize>(
    global: &Global,
    answer: &T,
    table: impl FnOnce(bool) -> String,
) -> Result<()> {
    let text = match global.output {
        Output::Json => serde_json::to_string_pretty(answer)? + "\n",
        Output::Yaml => serde_saphyr::to_string(answer)?,
        Output::Table | Output::Tsv => table(false),
        Output::Wide => table(true),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// Draws rows under headers, as kubectl does. No rows: no table, so that the caller can say so.
pub fn rows(global: &Global, columns: &[Column], rows: Vec<Vec<String>>) -> String {
    if global.output == Output::Tsv {
        let names = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let header = (!global.no_headers).then_some(names);
        let lines = header.into_iter().chain(rows);
        // A cell is one field of one line, whatever stands in it.
        let field = |cell: String| cell.replace(['\n', '\t'], " ");
        return lines
            .map(|line| line.into_iter().map(field).collect::<Vec<_>>().join("\t") + "\n")
            .collect();
    }
    drawn(columns, global.no_headers, rows)
}

/// As [`rows`], whatever was asked.
pub fn drawn(columns: &[(&str, Align)], no_headers: bool, rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if !no_headers {
        table.set_header(columns.iter().map(|(name, _)| Cell::new(name)));
    }
    table.add_rows(rows);
    let last = columns.len().saturating_sub(1);
    for (index, (_, align)) in columns.iter().enumerate() {
        let Some(column) = table.column_mut(index) else {
            continue;
        };
        // Two spaces between columns and none before the first, as kubectl has it.
        column.set_padding((0, if index == last { 0 } else { 2 }));
        column.set_cell_alignment(match align {
            Align::Left => CellAlignment::Left,
            Align::Right => CellAlignment::Right,
        });
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}

/// Says something beside the data.
pub fn say(words: &str) {
    // Nothing is left to do when stderr is closed.
    let _ = writeln!(std::io::stderr(), "{words}");
}

/// A duration as people say it: `42s`, `5m3s`, `2h10m`, `3d4h`.
pub fn age(seconds: u64) -> String {
    let (days, hours, minutes, rest) = (
        seconds / 86400,
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    );
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => format!("{minutes}m{rest}s"),
        (0, _, _) => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

/// An address and a port as they are written together.
pub fn endpoint(address: &str, port: u16) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

/// A part as a percentage, with a word behind it; `-` of nothing.
pub fn share(part: u32, whole: u32, what: &str) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    let percent = f64::from(part) * 100.0 / f64::from(whole);
    format!("{percent:.1}% {what}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn global() -> Global {
        Global {
            socket: "/nowhere".into(),
            pin_path: None,
            output: Output::Table,
            no_headers: false,
        }
    }

    #[test]
    fn a_table_looks_as_kubectl_draws_it() {
        let text = rows(
            &global(),
            &[("NAME", Align::Left), ("PACKETS", Align::Right)],
            vec![
                vec!["web".into(), "7".into()],
                vec!["dns-internal".into(), "12345".into()],
            ],
        );

        assert_eq!(
            text,
            "NAME          PACKETS\nweb                 7\ndns-internal    12345\n"
        );
    }

    #[test]
    fn tabs_stand_between_columns_only() {
        let tsv = Global {
            output: Output::Tsv,
            ..global()
        };
        let columns = [("NAME", Align::Left), ("PACKETS", Align::Right)];
        let text = rows(&tsv, &columns, vec![vec!["a\nb\tc".into(), "7".into()]]);

        assert_eq!(text, "NAME\tPACKETS\na b c\t7\n");
    }

    #[test]
    fn an_age_has_two_units_at_most() {
        assert_eq!(age(7), "7s");
        assert_eq!(age(303), "5m3s");
        assert_eq!(age(7800), "2h10m");
        assert_eq!(age(273_600), "3d4h");
    }
}
