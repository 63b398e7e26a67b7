//! Makes copies of a Linux guest and says how many of them ran: each must be renewed and must answer its first
//! exec. `soak-copies [COPIES [VCPUS [AT_ONCE]]]`: so many at once are made of one frozen twin. Ends with
//! status 1 if a copy did not run, and tells of each such copy what there was instead.

use podflare_e2e::agent::{Agent, NoAnswer};
use podflare_e2e::linux_guest;
use podflare_e2e::vmm::Vmm;
use podflare_wire::guest::Language;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const COPIES: u32 = 1000;
const VCPUS: u32 = 2;
const AT_ONCE: u32 = 1;
const PROGRESS_EVERY: u32 = 100;

/// How long a copy may take for each answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long one that has been woken may take.
const SECOND_PATIENCE: Duration = Duration::from_secs(2);

#[expect(clippy::print_stdout, reason = "the report is this program's output")]
fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mut number =
        |default| arguments.next().map_or(default, |text| text.parse::<u32>().expect("a number"));
    let (copies, vcpus, at_once) = (number(COPIES), number(VCPUS), number(AT_ONCE).max(1));
    let source = linux_guest::boot(u8::try_from(vcpus).expect("fewer vCPUs"), 1024, true);
    let mut agent = Agent::connect(&source, 0);
    let start = Instant::now();
    let (mut made, mut lost) = (0, 0);
    while made < copies {
        agent.python(&format!("x = {made}"));
        let count = at_once.min(copies - made);
        for loss in copies_at_once(&source, made, count) {
            println!("{loss}\n");
            lost += 1;
        }
        let before = made;
        made += count;
        if made / PROGRESS_EVERY > before / PROGRESS_EVERY || made == copies {
            println!("{made} copies of {vcpus} vCPUs in {} s: {lost} lost", start.elapsed().as_secs());
        }
    }
    ExitCode::from(u8::from(lost > 0))
}

/// Returns what is to be said of those that were lost.
fn copies_at_once(source: &Vmm, first: u32, count: u32) -> Vec<String> {
    let (twin, _) = source.fork();
    let copies: Vec<(u32, Vmm)> = (first..first + count).map(|number| (number, twin.fork().0)).collect();
    std::thread::scope(|scope| {
        let run = |(number, copy)| scope.spawn(move || run(copy, number, first).err());
        let threads: Vec<_> = copies.iter().map(|(number, copy)| run((*number, copy))).collect();
        threads.into_iter().filter_map(|thread| thread.join().expect("a copy's thread")).collect()
    })
}

fn run(copy: &Vmm, number: u32, x: u32) -> Result<(), String> {
    let mut agent = Agent::open(copy);
    agent.set_patience(PATIENCE);
    copy.thaw();
    let thawed = Instant::now();
    let seed = number.to_le_bytes()[0];
    let (step, no_answer) = match first_answer(&mut agent, seed) {
        Ok(answer) if answer == format!("{x}\n") => return Ok(()),
        Ok(answer) => return Err(format!("Copy {number} says that x is {answer:?}, not {x}.")),
        Err(failure) => failure,
    };
    let since_thaw_ms = thawed.elapsed().as_millis();
    let outcome = match (copy.end(), &no_answer) {
        (Some(end), _) => format!("Its VMM has ended and says {end}"),
        (None, NoAnswer::Nothing) => {
            let woken = wake(copy, &mut agent);
            format!("{woken} Its console:\n{}", String::from_utf8_lossy(&copy.console()))
        }
        (None, _) => format!("Its console:\n{}", String::from_utf8_lossy(&copy.console())),
    };
    Err(format!("Copy {number}: {no_answer:?} for the {step}, {since_thaw_ms} ms after its thaw. {outcome}"))
}

fn first_answer(agent: &mut Agent, seed: u8) -> Result<String, (&'static str, NoAnswer)> {
    agent.renew(seed).map_err(|error| ("renewal", error))?;
    agent.exec(Language::Python, "print(x)").map_err(|error| ("first exec", error))
}

/// Whether the interrupt that comes with another connection makes a silent guest go on.
fn wake(copy: &Vmm, silent: &mut Agent) -> &'static str {
    let mut second = Agent::open(copy);
    second.set_patience(SECOND_PATIENCE);
    silent.set_patience(SECOND_PATIENCE);
    match (second.renew(0), silent.confirm()) {
        (_, Ok(()) | Err(NoAnswer::Unexpected(_))) => "A second connection has woken it: the answer came.",
        (Ok(()), Err(_)) => "A second connection was answered; the first one stays silent.",
        (Err(_), Err(_)) => "A second connection is not answered either.",
    }
}
