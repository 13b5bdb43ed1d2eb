//! What is wrong with a file, and where: short letters to whoever wrote it.

use std::fmt;
use std::path::{Path, PathBuf};

/// A file's text, with the name to call it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceText {
    /// As the user named it; also what relative paths in a `Mesh` are relative to.
    pub path: PathBuf,
    /// Its content.
    pub text: String,
}

impl SourceText {
    /// A text with the name to call it by.
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self { path: path.into(), text: text.into() }
    }
}

/// A place in a file, with the line as it stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// How many characters are meant; at least 1.
    pub length: usize,
    /// The line, safe to print: clipped where very long, without control characters.
    pub text: String,
    /// How many characters were clipped from the front of `text`.
    clipped: usize,
}

/// Why a file is not a mesh.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// Where in it, if it is at one place.
    pub place: Option<Place>,
    /// What was found.
    pub what: String,
    /// What was expected there.
    pub expected: Option<String>,
    /// How to write it.
    pub hint: Option<String>,
}

/// A thing that Stolos reads differently from the system whose file this is, or does not act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The file.
    pub file: PathBuf,
    /// Where in it, if it is at one place.
    pub place: Option<Place>,
    /// What was found.
    pub what: String,
    /// What Stolos does instead.
    pub instead: String,
}

/// Everything that is wrong with a file: at least one problem.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// In the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never, for problems that were returned as an error.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expected = self.expected.as_deref().map(|e| ("expected", e));
        letter(f, "error", &self.what, &self.file, self.place.as_ref(), expected)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {}", indented(hint)),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        letter(f, "warning", &self.what, &self.file, self.place.as_ref(), Some(("instead", &self.instead)))
    }
}

fn letter(
    f: &mut fmt::Formatter<'_>,
    kind: &str,
    what: &str,
    file: &Path,
    place: Option<&Place>,
    more: Option<(&str, &str)>,
) -> fmt::Result {
    write!(f, "{kind}: {what}")?;
    let margin = place.map_or(2, |p| p.line.to_string().len());
    match place {
        Some(place) => {
            let Place { line, column, text, length, clipped } = place;
            let before = column - 1 - clipped;
            write!(f, "\n{:margin$}--> {}:{line}:{column}", "", file.display())?;
            write!(f, "\n{:margin$} |\n{line} | {text}", "")?;
            write!(f, "\n{:margin$} | {:before$}{}", "", "", "^".repeat((*length).max(1)))?;
        }
        None if file.as_os_str().is_empty() => {}
        None => write!(f, "\n{:margin$}--> {}", "", file.display())?,
    }
    match more {
        Some((label, text)) => write!(f, "\n{:margin$} = {label}: {text}", ""),
        None => Ok(()),
    }
}

fn indented(text: &str) -> String {
    text.replace('\n', "\n  ")
}

/// Where a node stands; becomes a [`Place`] once something is to be said about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) length: usize,
}

/// Collects everything there is to say about one file.
pub(crate) struct Notes<'a> {
    file: &'a SourceText,
    /// Whether credentials stand in the file.
    secret: bool,
    problems: Vec<(usize, Problem)>,
    warnings: Vec<Warning>,
}

impl<'a> Notes<'a> {
    pub(crate) fn on(file: &'a SourceText) -> Self {
        Self { file, secret: false, problems: Vec::new(), warnings: Vec::new() }
    }

    pub(crate) fn file(&self) -> &'a SourceText {
        self.file
    }

    /// Credentials stand in this file: of its lines only those are shown that can hold none.
    pub(crate) fn keep_secrets(&mut self) {
        self.secret = true;
    }

    fn place(&self, at: Option<At>) -> Option<Place> {
        const HARMLESS: [&str; 7] =
            ["apiVersion:", "kind:", "metadata:", "labels:", "istio/multiCluster:", "contexts:", "users:"];
        let at = at?;
        let line = self.line(at.line).trim_start();
        let harmless = HARMLESS.iter().any(|key| line.starts_with(key)) && !line.contains(['{', ',', '[']);
        if self.secret && !harmless { None } else { place(&self.file.text, at) }
    }

    /// Notes a problem; what was expected and a hint can be added to what comes back.
    pub(crate) fn problem(&mut self, at: impl Into<Option<At>>, what: impl Into<String>) -> &mut Problem {
        let at = at.into();
        let problem = Problem {
            file: self.file.path.clone(),
            place: self.place(at),
            what: what.into(),
            expected: None,
            hint: None,
        };
        self.problems.push((at.map_or(usize::MAX, |at| at.line), problem));
        &mut self.problems.last_mut().expect("just pushed").1
    }

    pub(crate) fn warn(&mut self, at: impl Into<Option<At>>, what: impl Into<String>, instead: impl Into<String>) {
        self.warnings.push(Warning {
            file: self.file.path.clone(),
            place: self.place(at.into()),
            what: what.into(),
            instead: instead.into(),
        });
    }

    /// Takes over what was said about a text inside this file, at the place where that stands.
    pub(crate) fn adopt(&mut self, inner: Notes<'_>, at: At) {
        for warning in inner.warnings {
            self.warn(at, warning.what, warning.instead);
        }
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// The line as written, without its end.
    pub(crate) fn line(&self, number: usize) -> &'a str {
        self.file.text.lines().nth(number.saturating_sub(1)).unwrap_or_default()
    }

    /// `understood`, if there are no problems in this file or in the one read along with it.
    pub(crate) fn finish<T>(
        self,
        understood: Option<T>,
        beside: Option<Notes<'_>>,
    ) -> Result<(T, Vec<Warning>), Problems> {
        let mut problems = in_order(self.problems);
        let mut warnings = in_order_of_lines(self.warnings);
        if let Some(beside) = beside {
            problems.extend(in_order(beside.problems));
            warnings.extend(in_order_of_lines(beside.warnings));
        }
        match understood {
            Some(understood) if problems.is_empty() => Ok((understood, warnings)),
            _ => Err(Problems(problems)),
        }
    }
}

/// `understood`, if there are no problems in any of these files; everything in the order of the files.
pub(crate) fn finish_all<T>(understood: Option<T>, files: Vec<Notes<'_>>) -> Result<(T, Vec<Warning>), Problems> {
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    for file in files {
        problems.extend(in_order(file.problems));
        warnings.extend(in_order_of_lines(file.warnings));
    }
    match understood {
        Some(understood) if problems.is_empty() => Ok((understood, warnings)),
        _ => Err(Problems(problems)),
    }
}

fn in_order_of_lines(mut warnings: Vec<Warning>) -> Vec<Warning> {
    warnings.sort_by_key(|w| w.place.as_ref().map_or(usize::MAX, |p| p.line));
    warnings
}

fn in_order(mut problems: Vec<(usize, Problem)>) -> Vec<Problem> {
    problems.sort_by_key(|(line, _)| *line);
    problems.into_iter().map(|(_, problem)| problem).collect()
}

impl Problem {
    pub(crate) fn expected(&mut self, expected: impl Into<String>) -> &mut Self {
        self.expected = Some(expected.into());
        self
    }

    pub(crate) fn hint(&mut self, hint: impl Into<String>) -> &mut Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The widest piece of a line that a message shows.
const WIDTH: usize = 120;

fn place(text: &str, at: At) -> Option<Place> {
    let line = text.lines().nth(at.line.checked_sub(1)?)?;
    let count = line.chars().count();
    let column = at.column.clamp(1, count + 1);
    let clipped = if column + at.length > WIDTH { (column - 1).saturating_sub(WIDTH / 3) } else { 0 };
    let text: String = line.chars().skip(clipped).take(WIDTH).map(printable).collect();
    let length = at.length.clamp(1, (count + 1).saturating_sub(column).clamp(1, WIDTH / 2));
    Some(Place { line: at.line, column, length, text: text.trim_end().to_owned(), clipped })
}

/// Keeps a file from steering the terminal.
fn printable(c: char) -> char {
    match c {
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

/// A text of the file's as it is quoted in a message: short, on one line.
pub(crate) fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(80).map(printable).collect();
    if text.chars().nth(80).is_some() {
        short.push('…');
    }
    format!("`{short}`")
}

/// The word of `known` that `found` was probably meant to be.
pub(crate) fn nearest<'k>(found: &str, known: &[&'k str]) -> Option<&'k str> {
    let plain = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
    let (wanted, limit) = (plain(found), (found.chars().count() / 3).clamp(1, 3));
    if wanted.chars().count() > 64 {
        return None;
    }
    known
        .iter()
        .map(|word| (distance(&wanted, &plain(word)), *word))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Levenshtein's, with a swap of neighbours counting as one.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// `a`, `b` or `c`.
pub(crate) fn one_of(words: &[&str]) -> String {
    let quoted: Vec<_> = words.iter().map(|w| format!("`{w}`")).collect();
    match quoted.as_slice() {
        [] => "nothing".to_owned(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}
