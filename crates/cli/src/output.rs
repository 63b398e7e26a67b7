//! The only place that prints: results on standard output, progress and errors on standard error.

use indicatif::{ProgressBar, ProgressStyle};
use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(100);

pub(crate) struct Output {
    terminal: bool,
    step: RefCell<Option<Step>>,
}

struct Step {
    text: String,
    began: Instant,
    /// Only on a terminal.
    spinner: Option<ProgressBar>,
}

impl Output {
    pub(crate) fn new() -> Output {
        Output { terminal: io::stderr().is_terminal(), step: RefCell::new(None) }
    }

    /// A line of the command's result.
    pub(crate) fn line(&self, text: &str) -> io::Result<()> {
        self.end_step();
        writeln!(io::stdout(), "{text}")
    }

    /// A line of a program's error output.
    pub(crate) fn error_line(&self, text: &str) -> io::Result<()> {
        self.end_step();
        writeln!(io::stderr(), "{text}")
    }

    /// A remark that is no result.
    pub(crate) fn note(&self, text: &str) {
        self.end_step();
        self.progress(text);
    }

    pub(crate) fn error(&self, error: &anyhow::Error) {
        self.end_step();
        let closed = |cause: &(dyn std::error::Error + 'static)| {
            cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
        };
        // Whoever read the output has seen enough.
        if !error.chain().any(closed) {
            self.progress(&format!("error: {error:#}"));
        }
    }

    /// Begins a long step, which lasts until the next one or the next line. Saying the same again changes
    /// nothing.
    pub(crate) fn step(&self, text: &str) {
        if self.step.borrow().as_ref().is_some_and(|step| step.text == text) {
            return;
        }
        self.end_step();
        let spinner = self.terminal.then(|| {
            let spinner = ProgressBar::new_spinner().with_message(text.to_owned());
            let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
            spinner.set_style(style.expect("the template is a constant that is tried at every start"));
            spinner.enable_steady_tick(TICK);
            spinner
        });
        if spinner.is_none() {
            self.progress(&format!("{text} ..."));
        }
        self.step.replace(Some(Step { text: text.to_owned(), began: Instant::now(), spinner }));
    }

    fn end_step(&self) {
        let Some(step) = self.step.take() else { return };
        if let Some(spinner) = step.spinner {
            spinner.finish_and_clear();
            self.progress(&format!("✓ {} ({:.1} s)", step.text, step.began.elapsed().as_secs_f32()));
        }
    }

    fn progress(&self, text: &str) {
        // Nobody reads a closed standard error, so nobody misses the line.
        drop(writeln!(io::stderr(), "{text}"));
    }
}
