//! The commands that the documentation tells people to type, typed.
//!
//! `<!-- run -->` before a block says that it is run: `yaml` is written to the file that its first line names, `sh` is
//! run by bash, all of a page in one folder, from top to bottom. `# exit code N` behind a command is what it must end with;
//! `# asks first` is answered with `--yes`, since nobody is there to be asked. What a reader has and the page takes for
//! granted (files of other systems, clusters that run) is made by a comment: `<!-- run unseen`, lines of bash, `-->`.
//!
//! `<!-- not run: reason -->` is the only other thing that a block of commands may have before it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::world::World;

/// Pages with a world of their own.
const ALONE: [&str; 4] = ["README.md", "docs/index.md", "docs/first-mesh.md", "docs/migrate.md"];
/// The same, with a hub.
const HUB: [&str; 1] = ["docs/first-hub.md"];
/// Pages about a mesh that is there, README's, one after the other in one world.
const DAY_TWO: [&str; 6] = [
    "docs/check.md",
    "docs/export.md",
    "docs/drain.md",
    "docs/operator.md",
    "docs/certificates.md",
    "docs/credentials.md",
];
const PATIENCE: Duration = Duration::from_secs(300);

/// What there is to do on a page.
#[derive(Debug, PartialEq)]
enum Part {
    /// A heading: what failed is found by it.
    Section(String),
    /// Name and text of a file.
    File(String, String),
    /// Lines as bash is to run them.
    Script(String),
    /// Why a block is not run.
    Not(String),
}

/// What a page has to run.
///
/// # Errors
///
/// The blocks of commands of which the page does not say whether they are run.
fn parts(page: &str) -> Result<Vec<Part>, Vec<String>> {
    const SHELLS: [&str; 5] = ["sh", "bash", "shell", "console", "zsh"];
    let (mut parts, mut silent) = (Vec::new(), Vec::new());
    let mut before = "";
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(title) = line.strip_prefix("## ") {
            parts.push(Part::Section(title.to_owned()));
        } else if line == "<!-- run unseen" {
            let unseen = lines.by_ref().take_while(|line| *line != "-->");
            parts.push(Part::Script(unseen.map(|line| format!("{line}\n")).collect()));
        } else if let Some(language) = line.trim_start().strip_prefix("```") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| line.trim_start() != "```").collect();
            let why = before.strip_prefix("<!-- not run: ").and_then(|rest| rest.strip_suffix(" -->"));
            match (language, before == "<!-- run -->") {
                ("yaml", true) => {
                    let name = block[0].strip_prefix("# ").expect("the first line names the file");
                    parts.push(Part::File(name.to_owned(), block.join("\n") + "\n"));
                }
                ("sh", true) => parts.push(Part::Script(block.iter().map(|line| command(line)).collect())),
                (other, true) => silent.push(format!("`{other}` cannot be run")),
                (language, false) if SHELLS.contains(&language) => match why {
                    Some(why) if !why.trim().is_empty() => parts.push(Part::Not(why.to_owned())),
                    _ => silent.push(block.join("\n")),
                },
                _ => {}
            }
        }
        before = line;
    }
    if silent.is_empty() { Ok(parts) } else { Err(silent) }
}

/// A line as bash is to run it.
fn command(line: &str) -> String {
    let Some((command, comment)) = line.split_once(" # ") else { return format!("{line}\n") };
    let (command, comment) = (command.trim_end(), comment.trim_start());
    if let Some(rest) = comment.strip_prefix("exit code ") {
        let code: u8 = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
        return format!(
            "code=0; {command} || code=$?; [ $code = {code} ] || {{ echo \"ended with $code\" >&2; exit 97; }}\n"
        );
    }
    if comment.starts_with("asks first") { format!("{command} --yes\n") } else { format!("{command}\n") }
}

#[test]
fn a_line_is_run_as_it_says() {
    assert_eq!(command("stolos plan -f mesh.yaml"), "stolos plan -f mesh.yaml\n");
    assert_eq!(command("stolos apply   # slowly"), "stolos apply\n");
    assert_eq!(command("stolos teardown  # asks first"), "stolos teardown --yes\n");
    assert!(command("stolos plan  # exit code 2: changes").contains("[ $code = 2 ]"));
}

#[test]
fn a_block_is_run_or_says_why_not() {
    let script = |text: &str| Part::Script(text.to_owned());
    let page = "## One\n<!-- run unseen\ncp a b\n-->\n\n<!-- run -->\n```sh\nb   # well\n```\n<!-- not run: no Docker -->\n```sh\ndocker\n```\n";
    let expected = vec![Part::Section("One".into()), script("cp a b\n"), script("b\n"), Part::Not("no Docker".into())];
    assert_eq!(parts(page), Ok(expected));
    assert_eq!(parts("```text\nx\n```\n```sh\nforgotten\n```\n"), Err(vec!["forgotten".to_owned()]));
    assert_eq!(parts("<!-- not run:  -->\n```console\n$ why\n```\n"), Err(vec!["$ why".to_owned()]));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The pages of the book and those beside it.
fn pages() -> Vec<String> {
    let of = |folder: &str| {
        let entries = std::fs::read_dir(root().join(folder)).unwrap().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let folder = if folder == "." { String::new() } else { format!("{folder}/") };
        let pages = names.filter(|name| name.ends_with(".md")).map(move |name| format!("{folder}{name}"));
        pages.collect::<Vec<_>>()
    };
    [".", "docs", "deploy", "fuzz"].into_iter().flat_map(of).collect()
}

#[test]
fn no_command_of_the_documentation_is_forgotten() {
    let mut forgotten = String::new();
    for page in pages() {
        let text = std::fs::read_to_string(root().join(&page)).unwrap();
        match parts(&text) {
            Ok(parts) => {
                let runs = parts.iter().any(|part| matches!(part, Part::Script(_)));
                let listed = ALONE.iter().chain(&HUB).chain(&DAY_TWO).any(|listed| *listed == page);
                assert_eq!(runs, listed, "{page} has something to run, and is in the list of pages that are run");
            }
            Err(silent) => silent.iter().for_each(|block| forgotten += &format!("{page}:\n{block}\n\n")),
        }
    }
    assert!(forgotten.is_empty(), "neither `<!-- run -->` nor `<!-- not run: reason -->` before\n\n{forgotten}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_the_first_pages_do_what_they_say() {
    run(&ALONE[..3]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_about_other_systems_do_what_they_say() {
    run(&ALONE[3..]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_the_first_hub_do_what_they_say() {
    run(&HUB).await;
}

/// On README's mesh, which the first of these pages finds built.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_day_two_do_what_they_say() {
    let Some(kubectl) = crate::programs::program("STOLOS_KUBECTL") else { return };
    let readme = parts(&std::fs::read_to_string(root().join("README.md")).unwrap()).unwrap();
    let mut all: Vec<_> = readme.into_iter().filter(|part| matches!(part, Part::File(..))).collect();
    let built =
        "stolos lab up -f mesh.yaml --detach\neval \"$(stolos lab env -f mesh.yaml)\"\nstolos apply -f mesh.yaml\n";
    all.push(Part::Script(built.to_owned()));
    for page in DAY_TWO {
        all.push(Part::Section(page.to_owned()));
        all.extend(parts(&std::fs::read_to_string(root().join(page)).unwrap()).unwrap());
    }
    typed("day two", &all, &kubectl).await;
}

async fn run(pages: &[&str]) {
    let Some(kubectl) = crate::programs::program("STOLOS_KUBECTL") else { return };
    for page in pages {
        let parts = parts(&std::fs::read_to_string(root().join(page)).unwrap()).unwrap();
        typed(page, &parts, &kubectl).await;
    }
}

/// Runs all parts as one script, in one folder.
async fn typed(page: &str, parts: &[Part], kubectl: &Path) {
    let mut world = World::new();
    let programs = world.path("programs");
    std::fs::create_dir_all(&programs).unwrap();
    let stolos = world.stolos::<&str>([]);
    std::os::unix::fs::symlink(stolos.as_std().get_program(), programs.join("stolos")).unwrap();
    std::os::unix::fs::symlink(kubectl, programs.join("kubectl")).unwrap();

    // What a page leaves in the background ends with it.
    let mut script = "set -eu\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\nset -x\n".to_owned();
    for (number, part) in parts.iter().enumerate() {
        script += &match part {
            Part::Section(title) => format!(": '## {}'\n", title.replace('\'', "’")),
            Part::File(name, text) => {
                let kept = world.write(&format!("file-{number}"), text);
                format!("cp {} {name}\n", kept.display())
            }
            Part::Script(lines) => lines.clone(),
            Part::Not(_) => String::new(),
        };
    }
    // Other tests listen, too.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let script = world.write("script", &script.replace(":8080", &format!(":{free}")));
    let here = world.path("here");
    std::fs::create_dir_all(&here).unwrap();
    for lab in ["mesh.yaml", "lab.yaml"] {
        world.ends_lab_of(&here.join(lab));
    }

    let mut bash = tokio::process::Command::new("bash");
    for (name, value) in stolos.as_std().get_envs() {
        if let Some(value) = value {
            bash.env(name, value);
        }
    }
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    bash.arg(&script).current_dir(&here).env("PATH", path).env_remove("KUBECONFIG");
    bash.env("INPUTS", root().canonicalize().unwrap().join("crates/spec/tests/inputs"));
    bash.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, bash.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{page}: it does not end")).unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{page}\n--- stdout\n{out}\n--- stderr\n{err}");
}

/// The book has every page, and every page that it names is there.
#[test]
fn the_book_is_whole() {
    let docs = root().join("docs");
    let summary = std::fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let mut named: Vec<&str> = summary.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    named.sort_unstable();
    let pages = std::fs::read_dir(&docs).unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut pages: Vec<String> = pages.filter(|name| name.ends_with(".md") && name != "SUMMARY.md").collect();
    pages.sort_unstable();
    assert_eq!(named, pages);
}
