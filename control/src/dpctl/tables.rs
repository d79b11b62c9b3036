//! `dpctl maps`: the datapath's tables, read from their pins, with or without an agent.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Outcome;
use super::args::{Global, Maps};
use super::render::{Align::Left, Align::Right, print, rows, say};
use crate::api::client::ask;
use crate::api::types::Status;
use crate::config::document::DEFAULT_PIN_PATH;
use crate::dataplane::dump::{self, Row};
use crate::dataplane::pins::Pins;

/// Shows tables.
pub async fn run(global: &Global, question: Maps) -> Result<Outcome> {
    let pins = pins(global).await?;
    match question {
        Maps::List => list(global, &pins),
        Maps::Dump { table, raw } => {
            let found = dump::dump(&pins, &table)?;
            show(global, &found, raw)?;
            if found.is_empty() {
                say(&format!("{} is empty", table.to_uppercase()));
            }
            Ok(Outcome::Yes)
        }
        Maps::Get { table, key, raw } => match dump::get(&pins, &table, &key.join(" "))? {
            Some(row) => {
                show(global, &[row], raw)?;
                Ok(Outcome::Yes)
            }
            None => {
                say(&format!("{} has no such row", table.to_uppercase()));
                Ok(Outcome::No)
            }
        },
    }
}

/// Where the tables are: as told, as the agent says, or at the usual place.
pub(super) async fn pins(global: &Global) -> Result<Pins> {
    let pins = match &global.pin_path {
        Some(path) => Pins::new(path),
        None => match ask::<Status>(&global.socket, "/v1/status").await {
            Ok(status) => Pins::new(status.pin_path),
            Err(_) => Pins::new(Path::new(DEFAULT_PIN_PATH)),
        },
    };
    let is_there = pins.maps().try_exists();
    if !is_there.with_context(|| {
        format!(
            "looking for tables in {}; run as root",
            pins.root().display()
        )
    })? {
        bail!(
            "no tables are pinned under {}; an agent makes them (`fairlead run`), another place is named by --pin-path or FAIRLEAD_PIN_PATH",
            pins.root().display()
        );
    }
    Ok(pins)
}

fn list(global: &Global, pins: &Pins) -> Result<Outcome> {
    let tables = dump::list(pins);
    print(global, &tables, |wide| {
        let mut columns = vec![
            ("NAME", Left),
            ("KIND", Left),
            ("ENTRIES", Right),
            ("CAPACITY", Right),
        ];
        if wide {
            columns.extend([
                ("VERSION", Right),
                ("KEY BYTES", Right),
                ("VALUE BYTES", Right),
            ]);
        }
        columns.push(("WHAT IT IS FOR", Left));
        let lines = tables
            .iter()
            .map(|table| {
                let mut cells = vec![
                    table.name.to_owned(),
                    table.kind.to_owned(),
                    table
                        .entries
                        .map_or_else(|| "-".to_owned(), |entries| entries.to_string()),
                    table.capacity.to_string(),
                ];
                if wide {
                    cells.extend([
                        table.version.to_string(),
                        table.key_bytes.to_string(),
                        table.value_bytes.to_string(),
                    ]);
                }
                cells.push(table.about.to_owned());
                cells
            })
            .collect();
        rows(global, &columns, lines)
    })?;
    Ok(Outcome::Yes)
}

fn show(global: &Global, found: &[Row], raw: bool) -> Result<()> {
    if raw {
        let bytes: Vec<_> = found
            .iter()
            .map(|row| serde_json::json!({ "key": row.raw_key, "value": row.raw_value }))
            .collect();
        return print(global, &bytes, |_| {
            found
                .iter()
                .map(|row| format!("key: {}  value: {}\n", row.raw_key, row.raw_value))
                .collect()
        });
    }
    let decoded: Vec<_> = found
        .iter()
        .map(|row| serde_json::json!({ "key": row.key, "value": row.value }))
        .collect();
    print(global, &decoded, |_| {
        let lines = found
            .iter()
            .map(|row| vec![words(&row.key), words(&row.value)])
            .collect();
        rows(global, &[("KEY", Left), ("VALUE", Left)], lines)
    })
}

/// A row's fields on one line: `addr=192.0.2.1 port=80`.
fn words(value: &Value) -> String {
    match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| format!("{name}={}", words(value)))
            .collect::<Vec<_>>()
            .join(" "),
        Value::Array(list) => {
            let list: Vec<_> = list.iter().map(words).collect();
            format!("[{}]", list.join(","))
        }
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}
