//! The only place that prints: data on standard output, everything else on standard error.
//!
//! A terminal gets live redraw, a pipe gets plain lines; without colour every message still works.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use owo_colors::{OwoColorize, Style};
use serde::Serialize;

use crate::failure::Failure;

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Table,
    /// For people with wide screens.
    Wide,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

impl Output {
    /// Whether a program reads it.
    pub(crate) fn is_document(self) -> bool {
        matches!(self, Self::Json | Self::Yaml)
    }
}

/// Whether to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// A style by what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Bad,
    Warn,
    Dim,
    Strong,
}

impl Tone {
    fn style(self) -> Style {
        match self {
            Self::Good => Style::new().green(),
            Self::Bad => Style::new().red().bold(),
            Self::Warn => Style::new().yellow(),
            Self::Dim => Style::new().dimmed(),
            Self::Strong => Style::new().bold(),
        }
    }
}

/// Standard output and standard error, used with manners.
pub(crate) struct Screen {
    color_out: bool,
    color_err: bool,
    /// The live part of a terminal; hidden anywhere else.
    multi: MultiProgress,
    live: bool,
    quiet: bool,
}

impl Screen {
    pub(crate) fn new(color: Color, quiet: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let colored = |terminal: bool| match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && !no_color && !dumb,
        };
        let live = io::stderr().is_terminal() && !dumb && !quiet;
        let target = if live { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self {
            color_out: colored(io::stdout().is_terminal()),
            color_err: colored(io::stderr().is_terminal()),
            multi: MultiProgress::with_draw_target(target),
            live,
            quiet,
        }
    }

    /// Whether data may be coloured.
    pub(crate) fn colors_data(&self) -> bool {
        self.color_out
    }

    /// Whether progress is redrawn in place.
    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    /// Data, as it is. A reader that has gone away is not an error.
    pub(crate) fn data(&self, text: &str) {
        self.multi.suspend(|| {
            let mut out = io::stdout().lock();
            let newline = if text.ends_with('\n') || text.is_empty() { "" } else { "\n" };
            let _ = write!(out, "{text}{newline}").and_then(|()| out.flush());
        });
    }

    /// Bytes of others, as they come.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> io::Result<()> {
        self.multi.suspend(|| {
            let mut out = io::stdout().lock();
            out.write_all(bytes).and_then(|()| out.flush())
        })
    }

    /// One document for a program.
    pub(crate) fn document(&self, output: Output, document: &impl Serialize) -> Result<(), Failure> {
        let text = match output {
            Output::Yaml => serde_saphyr::to_string(document).map_err(|e| Failure::caused(&e))?,
            _ => serde_json::to_string_pretty(document).map_err(|e| Failure::caused(&e))?,
        };
        self.data(&text);
        Ok(())
    }

    /// A line of progress.
    pub(crate) fn line(&self, text: impl AsRef<str>) {
        if !self.quiet {
            self.say(text.as_ref());
        }
    }

    /// Something that went otherwise than asked, or a warning: said even when quiet.
    pub(crate) fn say(&self, text: &str) {
        self.multi.suspend(|| {
            let mut err = io::stderr().lock();
            let _ = writeln!(err, "{text}");
        });
    }

    /// A heading of progress.
    pub(crate) fn heading(&self, text: impl AsRef<str>) {
        self.line(self.progress_tone(Tone::Strong, text.as_ref()));
    }

    pub(crate) fn warning(&self, warning: &stolos_spec::Warning) {
        let text = warning.to_string();
        let text = text.strip_prefix("warning:").unwrap_or(&text);
        self.say(&format!("{}{text}", self.progress_tone(Tone::Warn, "warning:")));
    }

    pub(crate) fn failure(&self, failure: &Failure) {
        let painted = failure.to_string().split('\n').map(|line| self.letter_line(line)).collect::<Vec<_>>().join("\n");
        self.say(&painted);
    }

    fn letter_line(&self, line: &str) -> String {
        for (prefix, tone) in [("error:", Tone::Bad), ("hint:", Tone::Good)] {
            if let Some(rest) = line.strip_prefix(prefix) {
                return format!("{}{rest}", self.progress_tone(tone, prefix));
            }
        }
        line.to_owned()
    }

    /// Styled for standard error.
    pub(crate) fn progress_tone(&self, tone: Tone, text: &str) -> String {
        paint(self.color_err, tone, text)
    }

    /// Styled for standard output.
    pub(crate) fn data_tone(&self, tone: Tone, text: &str) -> String {
        paint(self.color_out, tone, text)
    }

    /// Asks a question that is answered with yes or no; `None` where nobody can answer.
    pub(crate) fn ask(&self, question: &str) -> Option<bool> {
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return None;
        }
        self.multi.suspend(|| {
            let mut err = io::stderr().lock();
            let _ = write!(err, "{question} [y/N] ").and_then(|()| err.flush());
            let mut answer = String::new();
            io::stdin().read_line(&mut answer).ok()?;
            Some(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
        })
    }

    /// Asks a question that is answered with a line; what is `usual` for an empty one. `None` where nobody can answer.
    pub(crate) fn ask_for(&self, question: &str, usual: &str) -> Option<String> {
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return None;
        }
        self.multi.suspend(|| {
            let mut err = io::stderr().lock();
            let _ = write!(err, "{question} [{usual}] ").and_then(|()| err.flush());
            let mut answer = String::new();
            // The end of the input is no answer.
            io::stdin().read_line(&mut answer).ok().filter(|read| *read > 0)?;
            let answer = answer.trim();
            Some(if answer.is_empty() { usual.to_owned() } else { answer.to_owned() })
        })
    }

    /// Several things going on at once, of which people want to see the end.
    pub(crate) fn progress(&self, total: Option<usize>) -> Progress<'_> {
        let bar = total.filter(|_| self.live).map(|total| {
            let bar = ProgressBar::new(u64::try_from(total).unwrap_or(u64::MAX));
            bar.set_style(style("  {bar:30.green/dim} {pos}/{len} {elapsed}"));
            self.multi.add(bar)
        });
        Progress { screen: self, bar, running: Mutex::default() }
    }
}

fn paint(color: bool, tone: Tone, text: &str) -> String {
    if color { text.style(tone.style()).to_string() } else { text.to_owned() }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// How one of several things ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    Done,
    Failed,
    Skipped,
}

/// Several things going on at once.
pub(crate) struct Progress<'s> {
    screen: &'s Screen,
    bar: Option<ProgressBar>,
    running: Mutex<BTreeMap<String, (Option<ProgressBar>, Instant)>>,
}

impl Progress<'_> {
    /// Something begins.
    pub(crate) fn begin(&self, id: &str, text: &str) {
        let spinner = self.screen.live.then(|| {
            let spinner = ProgressBar::new_spinner().with_message(text.to_owned());
            spinner.set_style(style("  {spinner} {msg} {elapsed:.dim}"));
            let spinner = match &self.bar {
                Some(bar) => self.screen.multi.insert_before(bar, spinner),
                None => self.screen.multi.add(spinner),
            };
            spinner.enable_steady_tick(Duration::from_millis(90));
            spinner
        });
        self.lock().insert(id.to_owned(), (spinner, Instant::now()));
    }

    /// What something that has begun is waiting for.
    pub(crate) fn note(&self, id: &str, text: &str) {
        if let Some((Some(spinner), _)) = self.lock().get(id) {
            spinner.set_message(text.to_owned());
        }
    }

    /// What a program says that something runs.
    pub(crate) fn said(&self, text: &str) {
        self.screen.line(format!("    {}", self.screen.progress_tone(Tone::Dim, text)));
    }

    /// Something ends.
    pub(crate) fn end(&self, id: &str, mark: Mark, text: &str) {
        let begun = self.lock().remove(id);
        let took = match &begun {
            Some((_, at)) => {
                format!(" {}", self.screen.progress_tone(Tone::Dim, &format!("({})", elapsed(at.elapsed()))))
            }
            None => String::new(),
        };
        if let Some((Some(spinner), _)) = begun {
            spinner.finish_and_clear();
            self.screen.multi.remove(&spinner);
        }
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
        let mark = match mark {
            Mark::Done => self.screen.progress_tone(Tone::Good, "✓"),
            Mark::Failed => self.screen.progress_tone(Tone::Bad, "✗"),
            Mark::Skipped => self.screen.progress_tone(Tone::Dim, "-"),
        };
        self.screen.line(format!("  {mark} {text}{took}"));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, (Option<ProgressBar>, Instant)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        for (spinner, _) in std::mem::take(&mut *self.lock()).into_values() {
            if let Some(spinner) = spinner {
                spinner.finish_and_clear();
            }
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// So many of a thing.
pub(crate) fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// A time as people say it.
pub(crate) fn elapsed(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s < 1.0 => format!("{} ms", time.as_millis()),
        s if s < 60.0 => format!("{s:.1} s"),
        s => format!("{} min {} s", (s / 60.0).floor(), (s % 60.0).floor()),
    }
}

/// The log's way to standard error, past the live lines.
#[derive(Clone)]
pub(crate) struct LogWriter(MultiProgress);

/// Standard output for parts that outlive a borrow of the screen: a container's log.
#[derive(Clone)]
pub(crate) struct Lines;

impl Lines {
    /// One line of data.
    pub(crate) fn data(&self, line: &str) {
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{line}");
    }
}

impl Screen {
    pub(crate) fn lines(&self) -> Lines {
        Lines
    }

    /// Data of which many lines come at once.
    pub(crate) fn stdout(&self) -> impl Write + Send + 'static {
        io::stdout()
    }

    pub(crate) fn log_writer(&self) -> LogWriter {
        LogWriter(self.multi.clone())
    }
}

impl Write for LogWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(buffer))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
