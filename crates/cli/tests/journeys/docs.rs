//! The commands that the documentation tells people to type, typed.
//!
//! `<!-- run -->` before a block says that it is run: `yaml` is written to the file that its first line names, `sh` is
//! run by bash, all of a section (`##`) in one folder. `# exit code N` behind a command is what it must end with;
//! `# asks first` is answered with `--yes`, since nobody is there to be asked.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::world::World;

const PAGES: [&str; 2] = ["README.md", "docs/first-mesh.md"];
const PATIENCE: Duration = Duration::from_secs(300);

/// What one section has to run.
#[derive(Debug, Default)]
struct Section {
    title: String,
    /// Name and text; what an earlier section wrote is there, too.
    files: Vec<(String, String)>,
    script: String,
}

/// The sections of a page that have something to run.
fn sections(page: &str) -> Vec<Section> {
    let mut sections = vec![Section::default()];
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(title) = line.strip_prefix("## ") {
            let files = sections.last().map(|s| s.files.clone()).unwrap_or_default();
            sections.push(Section { title: title.to_owned(), files, script: String::new() });
        }
        if line != "<!-- run -->" {
            continue;
        }
        let fence = lines.next().unwrap_or_default();
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let section = sections.last_mut().unwrap();
        match fence {
            "```yaml" => {
                let name = block[0].strip_prefix("# ").expect("the first line names the file");
                section.files.push((name.to_owned(), block.join("\n") + "\n"));
            }
            "```sh" => section.script.extend(block.iter().map(|line| command(line))),
            other => panic!("`{other}` cannot be run"),
        }
    }
    sections.retain(|section| !section.script.is_empty());
    sections
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_the_documentation_do_what_they_say() {
    let Some(kubectl) = crate::programs::program("STOLOS_KUBECTL") else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for page in PAGES {
        let text = std::fs::read_to_string(root.join(page)).unwrap();
        let sections = sections(&text);
        assert!(!sections.is_empty(), "{page} has nothing to run");
        for section in sections {
            run(page, &section, &kubectl).await;
        }
    }
}

async fn run(page: &str, section: &Section, kubectl: &Path) {
    let mut world = World::new();
    for (name, text) in &section.files {
        let file = world.write(name, text);
        world.ends_lab_of(&file);
    }
    let programs = world.path("programs");
    std::fs::create_dir_all(&programs).unwrap();
    let stolos = world.stolos::<&str>([]);
    std::os::unix::fs::symlink(stolos.as_std().get_program(), programs.join("stolos")).unwrap();
    std::os::unix::fs::symlink(kubectl, programs.join("kubectl")).unwrap();
    let script = world.write("script", &format!("set -eu\nset -x\n{}", section.script));

    let mut bash = tokio::process::Command::new("bash");
    for (name, value) in stolos.as_std().get_envs() {
        if let Some(value) = value {
            bash.env(name, value);
        }
    }
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    bash.arg(&script).current_dir(world.path(".")).env("PATH", path).env_remove("KUBECONFIG");
    bash.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, bash.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{page}, {}: it does not end", section.title)).unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{page}, {}\n--- stdout\n{out}\n--- stderr\n{err}", section.title);
}

/// The book has every page, and every page that it names is there.
#[test]
fn the_book_is_whole() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let summary = std::fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let mut named: Vec<&str> = summary.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    named.sort_unstable();
    let pages = std::fs::read_dir(&docs).unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut pages: Vec<String> = pages.filter(|name| name.ends_with(".md") && name != "SUMMARY.md").collect();
    pages.sort_unstable();
    assert_eq!(named, pages);
}
