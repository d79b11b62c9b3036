//! Who may import whom. The table stands in README.md between `<!-- layers -->` and `<!-- /layers -->`; here it
//! is read and every path in the sources is held against it.
//!
//! A room is named by its path: `control/plan` is `control/src/plan.rs` with everything below `control/src/plan/`,
//! and the longest name in the table that fits a file is its room. Who may import a path may import all below it:
//! `control/api` covers `control/api/types`, and `control` the whole crate. What stands in the second column and
//! is no path is a crate: it is kept for the rooms that name it. Unit tests (`mod tests`, `tests.rs`) may import
//! what they like.
//!
//! Not for the purity of whole crates: their `Cargo.toml` sees to that.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Source folders that the table speaks about, with the name that they have in paths of rooms and the name that
/// other crates import them by.
const CRATES: [(&str, &str, &str); 4] = [
    ("common/src", "common", "fairlead_common"),
    ("dataplane-ebpf/src", "dataplane-ebpf", "fairlead_ebpf"),
    ("control/bgp/src", "control/bgp", "fairlead_bgp"),
    ("control/src", "control", "fairlead_control"),
];

/// Checks all sources against README's table.
///
/// # Errors
/// Names file, line and rule of each import that the table does not allow.
pub fn check() -> Result<()> {
    let root = workspace::root();
    let readme = fs::read_to_string(root.join("README.md"))
        .context("reading README.md for its layer table")?;
    let table = Table::parse(&readme).context("reading the layer table in README.md")?;
    let mut faults = Vec::new();
    for (sources, crate_name, _) in CRATES {
        for file in workspace::rust_files(&root.join(sources))? {
            let text =
                fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            let inside = file.strip_prefix(root.join(sources)).unwrap_or(&file);
            let shown = file.strip_prefix(root).unwrap_or(&file).display();
            faults.extend(
                table
                    .faults(crate_name, inside, &text)
                    .iter()
                    .map(|fault| format!("{shown}:{fault}")),
            );
        }
    }
    if faults.is_empty() {
        Ok(())
    } else {
        bail!("{}", faults.join("\n"))
    }
}

/// Rooms, and the rooms and crates that each may import.
struct Table {
    rows: BTreeMap<String, BTreeSet<String>>,
    /// Crates that only the rooms naming them may use.
    guarded: BTreeSet<String>,
}

impl Table {
    /// Reads rows of the form ``| `room` … | `room`, `crate` … |``; what is not in backticks is prose.
    fn parse(readme: &str) -> Result<Self> {
        let (_, rest) = readme
            .split_once("<!-- layers -->")
            .context("there is no <!-- layers -->")?;
        let (table, _) = rest
            .split_once("<!-- /layers -->")
            .context("there is no <!-- /layers -->")?;
        let mut rows = BTreeMap::new();
        for line in table.lines().filter(|line| line.starts_with('|')) {
            let mut cells = line.split('|').skip(1);
            let rooms = in_backticks(cells.next().unwrap_or_default());
            let imports = in_backticks(cells.next().unwrap_or_default());
            for room in rooms {
                if rows
                    .insert(
                        room.clone(),
                        imports.iter().cloned().collect::<BTreeSet<_>>(),
                    )
                    .is_some()
                {
                    bail!("`{room}` has two rows");
                }
            }
        }
        if rows.is_empty() {
            bail!("the table has no rows");
        }
        let known = |name: &str| {
            rows.keys()
                .any(|room| is_below(name, room) || is_below(room, name))
        };
        let named: BTreeSet<&String> = rows.values().flatten().collect();
        let guarded: BTreeSet<String> = named
            .into_iter()
            .filter(|name| !known(name))
            .cloned()
            .collect();
        if let Some(typo) = guarded.iter().find(|name| name.contains('/')) {
            bail!("`{typo}` is imported, but no room is called so");
        }
        Ok(Self { rows, guarded })
    }

    /// Finds the room that a path of modules lies in.
    fn room_of(&self, path: &str) -> Option<&str> {
        let rooms = self.rows.keys().filter(|room| is_below(path, room));
        rooms.max_by_key(|room| room.len()).map(String::as_str)
    }

    /// Returns `LINE: what is wrong` for each import in one file.
    fn faults(&self, crate_name: &str, inside: &Path, text: &str) -> Vec<String> {
        let module = module_path(inside);
        if module.last().is_some_and(|name| name == "tests") {
            return Vec::new();
        }
        let path = [&[crate_name.to_owned()], module.as_slice()]
            .concat()
            .join("/");
        let Some(room) = self.room_of(&path) else {
            return vec![format!("1: `{path}` is in no room of README's layer table")];
        };
        let allowed = &self.rows[room];
        let mut faults = Vec::new();
        for import in imports(text) {
            let module = [module.as_slice(), &import.within].concat();
            let Some(target) = resolve(&import.path, crate_name, &module) else {
                let outside = import.path[0].replace('_', "-");
                if self.guarded.contains(&outside) && !allowed.contains(&outside) {
                    faults.push(format!(
                        "{}: `{room}` must not use the crate {outside}",
                        import.line
                    ));
                }
                continue;
            };
            if is_below(&target, room) || allowed.iter().any(|path| is_below(&target, path)) {
                continue;
            }
            faults.push(match self.room_of(&target) {
                // A name at the root of a crate, re-exported or a macro, belongs to nobody.
                None => format!(
                    "{}: `{target}` is in no room of README's layer table",
                    import.line
                ),
                Some(other) => format!("{}: `{room}` must not import `{other}`", import.line),
            });
        }
        faults.dedup();
        faults
    }
}

/// Says whether a path is this room or lies in it.
fn is_below(path: &str, room: &str) -> bool {
    path.strip_prefix(room)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn in_backticks(cell: &str) -> Vec<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// Turns `plan/services.rs` into `[plan, services]`, and `lib.rs` into `[lib]`.
fn module_path(inside: &Path) -> Vec<String> {
    let file = inside.with_extension("");
    file.iter()
        .filter_map(|part| part.to_str())
        .map(str::to_owned)
        .collect()
}

/// Turns a path in the source into the path of a room; `None` for other crates and for names of the module's own.
fn resolve(path: &[String], crate_name: &str, module: &[String]) -> Option<String> {
    let first = path.first()?.as_str();
    // `lib.rs`, `main.rs` and each `bin/NAME.rs` are the root of a crate.
    let above = match module.first()?.as_str() {
        "lib" | "main" => 1,
        "bin" => 2,
        _ => 0,
    };
    let mut base: Vec<&str> = module.iter().skip(above).map(String::as_str).collect();
    let mut rest = &path[1..];
    match first {
        "crate" => base.clear(),
        "self" => {}
        "super" => {
            base.pop();
            while rest.first().is_some_and(|segment| segment == "super") {
                base.pop();
                rest = &rest[1..];
            }
        }
        other => {
            let (_, name, _) = CRATES.iter().find(|(_, _, import)| *import == other)?;
            return Some([&[(*name).to_owned()], rest].concat().join("/"));
        }
    }
    let rest = rest.iter().map(String::as_str);
    Some(
        [crate_name]
            .into_iter()
            .chain(base)
            .chain(rest)
            .collect::<Vec<_>>()
            .join("/"),
    )
}

/// One path in a source file, `use` or inline.
#[derive(Debug, PartialEq, Eq)]
struct Import {
    line: usize,
    /// The module of the file, `mod name { … }`, that it stands in.
    within: Vec<String>,
    path: Vec<String>,
}

/// Finds every path with `::` in it, with the groups of `use` written out, outside of `mod tests { … }`.
fn imports(text: &str) -> Vec<Import> {
    let mut found = Vec::new();
    imports_of(&tokens(text), &[], &mut found);
    found
}

fn imports_of(tokens: &[Token], within: &[String], found: &mut Vec<Import>) {
    let mut at = 0;
    while at < tokens.len() {
        let word = |offset: usize| {
            tokens
                .get(at + offset)
                .map_or("", |token| token.text.as_str())
        };
        if word(0) == "mod" && word(2) == "{" {
            let end = end_of_block(tokens, at + 2);
            if word(1) != "tests" {
                let within = [within, &[word(1).to_owned()]].concat();
                imports_of(&tokens[at + 3..end], &within, found);
            }
            at = end;
            continue;
        }
        let is_use = word(0) == "use";
        if is_use || (is_name(word(0)) && word(1) == "::") {
            let first = found.len();
            at = path_from(tokens, at + usize::from(is_use), &[], found);
            for import in &mut found[first..] {
                import.within = within.to_vec();
            }
        } else {
            at += 1;
        }
    }
}

fn end_of_block(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

/// Reads the path, or tree of paths, that begins at `at` and returns where it ends.
fn path_from(tokens: &[Token], mut at: usize, prefix: &[String], found: &mut Vec<Import>) -> usize {
    let text = |at: usize| tokens.get(at).map(|token| token.text.as_str());
    let mut path = prefix.to_vec();
    let line = tokens.get(at).map_or(0, |token| token.line);
    while let Some(segment) = text(at) {
        if segment == "{" {
            return group_from(tokens, at + 1, &path, found);
        }
        // In a tree, `self` is the module itself, and `*` is everything in it.
        let is_self = segment == "self" && !path.is_empty();
        if is_name(segment) && !is_self {
            path.push(segment.to_owned());
        } else if segment != "*" && !is_self {
            break;
        }
        at += 1;
        if text(at) != Some("::") {
            break;
        }
        at += 1;
    }
    if !path.is_empty() {
        found.push(Import {
            line,
            within: Vec::new(),
            path,
        });
    }
    // `use a::b as c`
    at + if text(at) == Some("as") { 2 } else { 0 }
}

fn group_from(
    tokens: &[Token],
    mut at: usize,
    prefix: &[String],
    found: &mut Vec<Import>,
) -> usize {
    while let Some(token) = tokens.get(at) {
        match token.text.as_str() {
            "}" => return at + 1,
            "," => at += 1,
            // At least one step, for text that is no Rust.
            _ => at = path_from(tokens, at, prefix, found).max(at + 1),
        }
    }
    at
}

fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

struct Token {
    line: usize,
    text: String,
}

/// Cuts source text into names, `::` and single marks; comments and literals are left out.
fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(length) = literal(rest) {
            length
        } else if rest.starts_with("::") {
            tokens.push(Token {
                line,
                text: "::".to_owned(),
            });
            2
        } else if first.is_alphanumeric() || first == '_' {
            let end = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            tokens.push(Token {
                line,
                text: rest[..end].to_owned(),
            });
            end
        } else {
            if !first.is_whitespace() {
                tokens.push(Token {
                    line,
                    text: first.to_string(),
                });
            }
            first.len_utf8()
        };
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    tokens
}

/// Measures the string, raw string or character literal that `rest` begins with.
fn literal(rest: &str) -> Option<usize> {
    let body = rest.trim_start_matches(['b', 'c', 'r']);
    let prefix = rest.len() - body.len();
    if prefix > 2 {
        return None;
    }
    if rest[..prefix].contains('r') {
        let hashes = body.len() - body.trim_start_matches('#').len();
        if !body[hashes..].starts_with('"') {
            return None;
        }
        let close = format!("\"{}", "#".repeat(hashes));
        let end = body[hashes + 1..]
            .find(&close)
            .map_or(body.len(), |end| hashes + 1 + end + close.len());
        return Some(prefix + end);
    }
    let quote = body
        .chars()
        .next()
        .filter(|quote| *quote == '"' || *quote == '\'')?;
    // `'a` without a closing mark is a lifetime.
    let is_lifetime =
        quote == '\'' && !body[1..].starts_with('\\') && body.chars().nth(2) != Some('\'');
    if is_lifetime {
        return (prefix == 0).then_some(1);
    }
    let mut escaped = false;
    for (at, letter) in body.char_indices().skip(1) {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            letter if letter == quote => return Some(prefix + at + 1),
            _ => {}
        }
    }
    Some(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const README: &str = "
prose | with | bars
<!-- layers -->
| room | may import | why |
|---|---|---|
| `common` | nothing | |
| `control/desired` | `common` | |
| `control/plan`, `control/other` | `common`, `control/desired` | |
| `control/dataplane` | `control/plan`, `aya` | |
| `control/api`, `control/api/types` | nothing | |
| `control/dpctl` | `control/api`, `control/dataplane/table` | |
| `control/agent` | `control`, `common`, `tokio` | |
| `control/lib` | all | |
<!-- /layers -->
| `not/a/row` | x |";

    fn faults(file: &str, text: &str) -> Vec<String> {
        Table::parse(README)
            .unwrap()
            .faults("control", Path::new(file), text)
    }

    fn paths(text: &str) -> Vec<String> {
        imports(text)
            .into_iter()
            .map(|import| import.path.join("::"))
            .collect()
    }

    #[test]
    fn groups_are_written_out() {
        let text = "use crate::{desired::{state::State as S, self}, plan::*};\nuse std::fmt;";
        assert_eq!(
            paths(text),
            [
                "crate::desired::state::State",
                "crate::desired",
                "crate::plan",
                "std::fmt"
            ]
        );
    }

    #[test]
    fn inline_paths_count_and_comments_literals_and_unit_tests_do_not() {
        let text = "// crate::a::b\n/* crate::c */ fn f<'a>(x: &'a crate::d::E) { g(\"crate::f::g\", '\"', r#\"\"crate::h\"#); }\n\
                    mod tests { use crate::i::J; fn k() { crate::l::m() } }\nuse crate::n::O;";
        assert_eq!(paths(text), ["crate::d::E", "crate::n::O"]);
        assert_eq!(imports(text).last().map(|import| import.line), Some(4));
    }

    #[test]
    fn a_struct_literal_after_a_path_is_not_a_group() {
        assert_eq!(
            paths("let a = crate::b::C { d: e::F, g };"),
            ["crate::b::C", "e::F"]
        );
    }

    #[test]
    fn an_import_down_the_layers_is_allowed_and_one_up_is_not() {
        let down = "use crate::desired::state::Desired;\nuse fairlead_common::address::Address;";
        assert_eq!(faults("plan/services.rs", down), Vec::<String>::new());
        assert_eq!(
            faults("desired/state.rs", "\nuse crate::plan::Plan;"),
            ["2: `control/desired` must not import `control/plan`"]
        );
        assert_eq!(
            faults(
                "desired/state.rs",
                "fn f() { super::super::dataplane::load() }"
            ),
            ["1: `control/desired` must not import `control/dataplane`"]
        );
    }

    #[test]
    fn a_room_may_import_itself() {
        assert_eq!(
            faults(
                "plan/services.rs",
                "use super::order::Order; use crate::plan::diff;"
            ),
            Vec::<String>::new()
        );
        let inline = "mod a { mod b { use super::super::order::Order; } fn f() { super::g::h() } }";
        assert_eq!(faults("plan.rs", inline), Vec::<String>::new());
        let out = "mod a { use super::super::dataplane::load; }";
        assert_eq!(
            faults("plan.rs", out),
            ["1: `control/plan` must not import `control/dataplane`"]
        );
        assert_eq!(
            faults("plan.rs", "use self::order::Order; pub use order::X;"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn who_may_import_a_path_may_import_what_is_below_it_and_not_what_is_beside_it() {
        let below = "use crate::api::types::Status; use crate::dataplane::table::Pinned;";
        assert_eq!(faults("dpctl/run.rs", below), Vec::<String>::new());
        assert_eq!(
            faults("dpctl/run.rs", "use crate::dataplane::load;"),
            ["1: `control/dpctl` must not import `control/dataplane`"]
        );
        let everything = "use crate::plan::Plan; use crate::dataplane::load; use tokio::select;";
        assert_eq!(faults("agent.rs", everything), Vec::<String>::new());
        assert_eq!(
            faults("api/types.rs", "use super::server::Question;"),
            ["1: `control/api/types` must not import `control/api`"]
        );
    }

    #[test]
    fn a_crate_that_one_row_names_is_refused_elsewhere() {
        assert_eq!(
            faults("dataplane/load.rs", "use aya::Ebpf;"),
            Vec::<String>::new()
        );
        assert_eq!(
            faults("plan.rs", "use aya::Ebpf;"),
            ["1: `control/plan` must not use the crate aya"]
        );
        assert_eq!(faults("plan.rs", "use std::fmt;"), Vec::<String>::new());
        assert_eq!(
            faults("plan/tests.rs", "use aya::Ebpf;"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_file_without_a_row_is_a_fault() {
        assert_eq!(
            faults("planet.rs", ""),
            ["1: `control/planet` is in no room of README's layer table"]
        );
        assert_eq!(
            faults("plan.rs", "use crate::planet::Orbit;"),
            ["1: `control/planet/Orbit` is in no room of README's layer table"]
        );
    }

    #[test]
    fn a_table_with_a_misspelt_room_or_without_rows_is_refused() {
        assert!(
            Table::parse(
                &README.replace("`common`, `control/desired`", "`common`, `control/desird`")
            )
            .is_err()
        );
        assert!(Table::parse("<!-- layers --><!-- /layers -->").is_err());
        assert!(Table::parse("no markers").is_err());
    }
}
