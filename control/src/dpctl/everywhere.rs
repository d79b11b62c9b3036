//! `kubectl fairlead`: `dpctl` on every node at once, as a plugin of `kubectl`.
//!
//! ```text
//!   kubectl fairlead bgp peers  ->  kubectl exec POD -- dpctl bgp peers, in every agent's pod  ->  one table
//! ```
//! # Why
//! Whoever may `exec` into the agents' pods may ask; there is nothing else to grant, to expose or to trust. It is
//! `kubectl` that reaches the cluster, so that whatever reaches it for `kubectl` (proxies, exec credentials, contexts)
//! does here.
//!
//! What all nodes answer by one table is one table, with a column for the node. Everything else stands by node.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Child, Command, ExitCode, Output as Printed, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::{CommandFactory, Parser};
use serde_json::Value;

use super::render::{Align, drawn};
use crate::telemetry::cause;

/// Shows what Fairlead does on every node of a cluster, and why
#[derive(Debug, Parser)]
#[command(
    name = "kubectl fairlead",
    bin_name = "kubectl fairlead",
    version,
    max_term_width = 100
)]
#[command(after_help = "Examples:
  kubectl fairlead status                     are all nodes as they should be?
  kubectl fairlead bgp peers                  the sessions of every node
  kubectl fairlead --node node1 drops         what one node dropped, and why
  kubectl fairlead services -o json           by node, for programs

Exit codes: 0 yes or done on all nodes, 1 asked and the answer of a node is no, 2 error.")]
struct Everywhere {
    /// Only these nodes; else all that an agent runs on
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    node: Vec<String>,
    /// The namespace of the agents; else any
    #[arg(short, long)]
    namespace: Option<String>,
    /// The context of the kubeconfig
    #[arg(long)]
    context: Option<String>,
    /// The kubeconfig
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<String>,
    /// The agents' pods by their labels
    #[arg(short = 'l', long, default_value = "app.kubernetes.io/name=fairlead")]
    selector: String,
    /// What `dpctl` is asked: `dpctl --help` on any node says what there is
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    question: Vec<String>,
}

/// Runs it on the process's arguments.
pub fn main() -> ExitCode {
    if std::env::args_os().len() < 2 {
        let help = Everywhere::command().render_help();
        // Nothing is left to do when stderr is closed.
        let _ = write!(std::io::stderr(), "{help}");
        return ExitCode::from(2);
    }
    match Everywhere::parse().run() {
        Ok(code) => ExitCode::from(code),
        Err(error) if super::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do when stderr is closed as well.
            let _ = writeln!(
                std::io::stderr(),
                "kubectl fairlead: {}",
                cause::line(&error)
            );
            ExitCode::from(2)
        }
    }
}

/// An agent.
#[derive(Debug, PartialEq, Eq)]
struct Pod {
    namespace: String,
    name: String,
}

/// How an answer is printed.
enum Form {
    /// One table of all nodes', where they answer by tables.
    Table,
    /// One object of all nodes'.
    Json,
    /// As it comes, by node.
    AsItComes,
}

impl Everywhere {
    fn run(&self) -> Result<u8> {
        let mut pods = agents(&self.list()?)?;
        if !self.node.is_empty() {
            for node in &self.node {
                ensure!(
                    pods.contains_key(node),
                    "no agent runs on the node {node}; there are: {}",
                    pods.keys().cloned().collect::<Vec<_>>().join(", ")
                );
            }
            pods.retain(|node, _| self.node.contains(node));
        }
        ensure!(
            !pods.is_empty(),
            "no pod with the label {} runs in {}: is Fairlead installed? `--selector` and `--namespace` say where",
            self.selector,
            self.namespace
                .as_ref()
                .map_or("any namespace".to_owned(), |name| format!(
                    "the namespace {name}"
                ))
        );
        if self
            .question
            .iter()
            .any(|word| word == "-f" || word == "--follow")
        {
            return self.follow(&pods);
        }
        let form = form(&self.question);
        let more: &[&str] = match form {
            Form::Table => &["-o", "tsv"],
            Form::Json | Form::AsItComes => &[],
        };
        let mut answers = self.ask(&pods, more)?;
        let mut text = match form {
            Form::Table => table(&answers),
            Form::Json => Some(object(&answers)?),
            Form::AsItComes => None,
        };
        if matches!(form, Form::Table) && text.is_none() {
            // No tables: as people read it on the node.
            answers = self.ask(&pods, &[])?;
        }
        let text = text.get_or_insert_with(|| by_node(&answers));
        std::io::stdout().write_all(text.as_bytes())?;
        // What is said beside the data is said once when all say it.
        let mut said: Vec<(Vec<&str>, String)> = Vec::new();
        for (node, answer) in &answers {
            let words = String::from_utf8_lossy(&answer.stderr).trim().to_owned();
            // kubectl's own word for an exit code, which ours says.
            let words: Vec<_> = words
                .lines()
                .filter(|line| !line.starts_with("command terminated with exit code"))
                .collect();
            let words = words.join("\n");
            match said.iter_mut().find(|(_, same)| *same == words) {
                _ if words.is_empty() => {}
                Some((nodes, _)) => nodes.push(node),
                None => said.push((vec![node], words)),
            }
        }
        for (nodes, words) in said {
            if nodes.len() == answers.len() {
                super::render::say(&words);
            } else {
                super::render::say(&format!("{}: {words}", nodes.join(", ")));
            }
        }
        let codes = answers.values().map(|answer| match answer.status.code() {
            Some(0) => 0,
            Some(1) if is_answer(answer) => 1,
            _ => 2,
        });
        Ok(codes.max().unwrap_or_default())
    }

    fn kubectl(&self) -> Command {
        let mut kubectl = Command::new("kubectl");
        let flags = [
            ("--context", &self.context),
            ("--kubeconfig", &self.kubeconfig),
        ];
        for (flag, value) in flags {
            if let Some(value) = value {
                kubectl.arg(format!("{flag}={value}"));
            }
        }
        kubectl
    }

    fn list(&self) -> Result<Value> {
        let mut kubectl = self.kubectl();
        kubectl.args(["get", "pods", "-o", "json", "-l", &self.selector]);
        match &self.namespace {
            Some(namespace) => kubectl.args(["--namespace", namespace]),
            None => kubectl.arg("--all-namespaces"),
        };
        let printed = kubectl
            .stderr(Stdio::inherit())
            .output()
            .context("starting kubectl, which must be in PATH")?;
        ensure!(
            printed.status.success(),
            "kubectl cannot list the agents' pods"
        );
        serde_json::from_slice(&printed.stdout).context("reading what kubectl lists")
    }

    /// `dpctl` with the question, in an agent's pod.
    fn dpctl(&self, pod: &Pod) -> Command {
        let mut kubectl = self.kubectl();
        kubectl
            .args(["exec", "--namespace", &pod.namespace, &pod.name])
            .args(["--container", "fairlead", "--", "dpctl"])
            .args(&self.question);
        kubectl
    }

    /// Hands on what one node goes on saying.
    fn follow(&self, pods: &BTreeMap<String, Pod>) -> Result<u8> {
        let mut all = pods.values();
        let (Some(pod), None) = (all.next(), all.next()) else {
            bail!("only one node can be followed: say which by --node, before the question");
        };
        let status = self.dpctl(pod).status().context("starting kubectl")?;
        Ok(status
            .code()
            .map_or(2, |code| u8::try_from(code).unwrap_or(2)))
    }

    /// Asks all nodes at once.
    fn ask(
        &self,
        pods: &BTreeMap<String, Pod>,
        more: &[&str],
    ) -> Result<BTreeMap<String, Printed>> {
        let start = |pod: &Pod| -> Result<Child> {
            self.dpctl(pod)
                .args(more)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .context("starting kubectl")
        };
        let asked = pods.iter().map(|(node, pod)| Ok((node, start(pod)?)));
        let asked = asked.collect::<Result<Vec<_>>>()?;
        // Each is heard to its end by a thread of its own: nobody waits for a reader of another's words.
        let threads: Vec<_> = asked
            .into_iter()
            .map(|(node, child)| {
                (
                    node.clone(),
                    std::thread::spawn(|| child.wait_with_output()),
                )
            })
            .collect();
        threads
            .into_iter()
            .map(|(node, thread)| match thread.join() {
                Ok(printed) => Ok((node, printed?)),
                Err(_) => bail!("hearing {node} ended early"),
            })
            .collect()
    }
}

/// The running agents by node. Of several on one the ready one has it: another waits for its end, or failed.
fn agents(list: &Value) -> Result<BTreeMap<String, Pod>> {
    let items = list["items"]
        .as_array()
        .context("kubectl lists no pods: there is no `items`")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut running: Vec<_> = items
        .iter()
        .filter(|pod| {
            pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null()
        })
        .collect();
    // The last one of a node counts.
    running.sort_by_key(|pod| is_ready(pod));
    Ok(running
        .into_iter()
        .map(|pod| {
            let metadata = &pod["metadata"];
            let agent = Pod {
                namespace: text(&metadata["namespace"]),
                name: text(&metadata["name"]),
            };
            (text(&pod["spec"]["nodeName"]), agent)
        })
        .collect())
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| {
        all.iter()
            .any(|one| one["type"] == "Ready" && one["status"] == "True")
    })
}

/// What the question itself says of the form.
fn form(question: &[String]) -> Form {
    let mut words = question.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let value = match word {
            "-o" | "--output" => words.next(),
            _ => word
                .strip_prefix("--output=")
                .or_else(|| word.strip_prefix("-o").filter(|rest| !rest.is_empty())),
        };
        match value {
            Some("json") => return Form::Json,
            Some("table") => {}
            Some(_) => return Form::AsItComes,
            None if matches!(word, "-h" | "--help") => return Form::AsItComes,
            None => {}
        }
    }
    Form::Table
}

/// Whether the node's `dpctl` has answered: else the error is another one's.
fn is_answer(answer: &Printed) -> bool {
    !answer.stdout.is_empty()
}

fn text(answer: &Printed) -> String {
    String::from_utf8_lossy(&answer.stdout).into_owned()
}

/// One table, when every node that says something says a table of the same columns.
fn table(answers: &BTreeMap<String, Printed>) -> Option<String> {
    let mut header: Option<Vec<String>> = None;
    let mut rows = Vec::new();
    for (node, answer) in answers {
        let text = text(answer);
        let mut lines = text
            .lines()
            .map(|line| line.split('\t').map(str::to_owned).collect::<Vec<_>>());
        let Some(first) = lines.next() else {
            continue;
        };
        if first.len() < 2 || header.as_ref().is_some_and(|header| *header != first) {
            return None;
        }
        for line in lines {
            if line.len() != first.len() {
                return None;
            }
            rows.push([std::slice::from_ref(node), &line[..]].concat());
        }
        header = Some(first);
    }
    let header = header?;
    let names = std::iter::once("NODE").chain(header.iter().map(String::as_str));
    let columns: Vec<_> = names
        .enumerate()
        .map(|(at, name)| {
            let are_numbers = rows.iter().all(|row| row[at].parse::<f64>().is_ok());
            let align = if are_numbers {
                Align::Right
            } else {
                Align::Left
            };
            (name, align)
        })
        .collect();
    Some(drawn(&columns, false, rows))
}

fn object(answers: &BTreeMap<String, Printed>) -> Result<String> {
    let mut all = BTreeMap::new();
    for (node, answer) in answers {
        let value: Value = match &answer.stdout[..] {
            [] => Value::Null,
            json => serde_json::from_slice(json).with_context(|| format!("{node}'s answer"))?,
        };
        all.insert(node, value);
    }
    Ok(serde_json::to_string_pretty(&all)? + "\n")
}

fn by_node(answers: &BTreeMap<String, Printed>) -> String {
    if answers.values().all(|answer| answer.stdout.is_empty()) {
        return String::new();
    }
    let part = |(node, answer): (&String, &Printed)| format!("==> {node} <==\n{}", text(answer));
    answers.iter().map(part).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use super::*;

    fn answers(texts: &[(&str, &str)]) -> BTreeMap<String, Printed> {
        let printed = |text: &str| Printed {
            status: ExitStatus::from_raw(0),
            stdout: text.as_bytes().to_vec(),
            stderr: Vec::new(),
        };
        texts
            .iter()
            .map(|(node, text)| ((*node).to_owned(), printed(text)))
            .collect()
    }

    #[test]
    fn tables_of_the_same_columns_become_one() {
        let all = answers(&[
            ("node1", "PEER\tPREFIXES\n10.0.0.1\t7\n"),
            ("node2", "PEER\tPREFIXES\n10.0.0.2\t12\n"),
            ("node3", ""),
        ]);

        assert_eq!(
            table(&all).unwrap(),
            "NODE   PEER      PREFIXES\nnode1  10.0.0.1         7\nnode2  10.0.0.2        12\n"
        );
    }

    #[test]
    fn what_is_no_table_or_another_one_stands_by_node() {
        for text in [
            "Node  node2\n",
            "PEER\tSTATE\nx\tup\n",
            "PEER\tPREFIXES\n\n",
        ] {
            let all = answers(&[("node1", "PEER\tPREFIXES\n10.0.0.1\t7\n"), ("node2", text)]);
            assert_eq!(table(&all), None, "{text}");
        }
        let all = answers(&[("node1", "up\n"), ("node2", "down\n")]);
        assert_eq!(by_node(&all), "==> node1 <==\nup\n\n==> node2 <==\ndown\n");
    }

    #[test]
    fn json_is_one_object_by_node() {
        let all = answers(&[("node1", "[1]"), ("node2", "")]);
        let object: Value = serde_json::from_str(&object(&all).unwrap()).unwrap();

        assert_eq!(object, serde_json::json!({"node1": [1], "node2": null}));
    }

    #[test]
    fn only_agents_that_run_are_asked() {
        let pod = |name: &str, phase: &str, deletion: Value| {
            let is_ready = if name == "now" { "True" } else { "False" };
            serde_json::json!({
                "metadata": {"namespace": "kube-system", "name": name, "deletionTimestamp": deletion},
                "spec": {"nodeName": "node1"},
                "status": {"phase": phase, "conditions": [{"type": "Ready", "status": is_ready}]},
            })
        };
        let list = serde_json::json!({"items": [
            pod("old", "Running", Value::from("2026-01-01T00:00:00Z")),
            pod("now", "Running", Value::Null),
            pod("next", "Pending", Value::Null),
            pod("of-another-release", "Running", Value::Null),
        ]});

        let agents = agents(&list).unwrap();

        assert_eq!(agents.len(), 1);
        assert_eq!(agents["node1"].name, "now");
        let error = super::agents(&Value::Null).unwrap_err().to_string();
        assert_eq!(error, "kubectl lists no pods: there is no `items`");
    }

    #[test]
    fn the_form_is_what_the_question_asks_for() {
        let form = |words: &str| form(&words.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert!(matches!(form("bgp peers"), Form::Table));
        assert!(matches!(form("bgp peers -o table"), Form::Table));
        for json in [
            "bgp peers -o json",
            "bgp peers -ojson",
            "--output=json services",
        ] {
            assert!(matches!(form(json), Form::Json), "{json}");
        }
        for other in ["bgp peers -o wide", "services -o yaml", "bgp --help"] {
            assert!(matches!(form(other), Form::AsItComes), "{other}");
        }
    }
}
