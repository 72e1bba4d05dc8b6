//! Readers of other languages, each a process that reads all inputs: a line of hexadecimal digits for each on its input, a
//! line of JSON on its output, in a form that leaves nothing to the reader of that.

use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::readers::Tree;

/// What `program` reads of each text, or why it does not.
pub(crate) fn read(program: &str, script: &str, texts: &[&[u8]]) -> Vec<Result<Tree, String>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential").join(script);
    let mut command = Command::new(program);
    let started = command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = started.unwrap_or_else(|error| panic!("`{program}` is needed here: {error}"));
    let (stdin, stdout) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
    let read = std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut to = BufWriter::new(stdin);
            for text in texts {
                let digits: String = text.iter().map(|byte| format!("{byte:02x}")).collect();
                writeln!(to, "{digits}").expect("it reads on");
            }
        });
        let lines = BufReader::new(stdout).lines();
        lines.map(|line| answer(&line.expect("UTF-8"))).collect::<Vec<_>>()
    });
    assert!(child.wait().expect("its end").success(), "{program}");
    assert_eq!(read.len(), texts.len(), "{program}: an answer for each");
    read
}

fn answer(line: &str) -> Result<Tree, String> {
    let answer: Value = serde_json::from_str(line).expect("JSON");
    match answer.get("refused").and_then(Value::as_str) {
        Some(why) => Err(why.to_owned()),
        None => Ok(tree(&answer["read"])),
    }
}

fn tree(value: &Value) -> Tree {
    match value {
        Value::Null => Tree::Null,
        Value::Bool(value) => Tree::Bool(*value),
        Value::String(text) => Tree::Text(text.clone()),
        Value::Array(items) => Tree::Array(items.iter().map(tree).collect()),
        Value::Object(form) => {
            let text = |form: &Value| form.as_str().unwrap_or_default().to_owned();
            match (form.get("number"), form.get("double"), form.get("object")) {
                (Some(number), _, _) => Tree::Number(text(number)),
                (_, Some(bits), _) => {
                    Tree::Double(f64::from_bits(u64::from_str_radix(&text(bits), 16).expect("64 bits")))
                }
                (_, _, Some(Value::Array(members))) => {
                    Tree::Object(members.iter().map(|member| (text(&member[0]), tree(&member[1]))).collect())
                }
                _other => panic!("no form of a value: {value}"),
            }
        }
        Value::Number(_) => panic!("no form of a value: {value}"),
    }
}
