//! Loads for a Linux guest, run by its agent. Each notices itself when something is not as it was: a copy of a
//! guest that is under one of them must come out of its questions as whole as its source.

use crate::agent::Agent;

const PROCESSES: u32 = 500;
const THREADS: u32 = 1000;
const WRITERS: u32 = 4;

/// Python that most loads need; it starts a program of its own, whose end nobody waits for.
const START: &str = r"
import hashlib, mmap, os, signal, socket, struct, subprocess, sys, time, zlib
def start(code, *arguments):
    return subprocess.Popen([sys.executable, '-c', code, *arguments], start_new_session=True)
";

/// Processes that compute the same again and again, compare, and say how often they have.
#[derive(Debug)]
pub struct Spinners(u32);

impl Spinners {
    const CODE: &str = r"
import hashlib, os, struct, sys
def chain():
    digest = b'spin'
    for _ in range(500):
        digest = hashlib.sha256(digest).digest()
    return digest
right, rounds = chain(), 0
while True:
    if chain() != right:
        open('/run/wrong', 'w').close()
    rounds += 1
    with open(f'/run/spinner-{sys.argv[1]}.new', 'w') as file:
        file.write(str(rounds))
    os.rename(file.name, f'/run/spinner-{sys.argv[1]}')
";

    pub fn start(agent: &mut Agent, count: u32) -> Spinners {
        agent.python(&format!("{START}\nfor i in range({count}): _ = start({:?}, str(i))", Self::CODE));
        let spinners = Spinners(count);
        spinners.assert_well(agent);
        spinners
    }

    /// Waits until each has gone a round further.
    ///
    /// # Panics
    /// When one stands still, or has computed something else than before.
    pub fn assert_well(&self, agent: &mut Agent) {
        let answer = agent.python(&format!(
            r"
def rounds():
    names = [f'/run/spinner-{{i}}' for i in range({})]
    return [int(open(name).read()) if os.path.exists(name) else 0 for name in names]
before, deadline = rounds(), time.monotonic() + 90
while any(now <= then for now, then in zip(rounds(), before)) and time.monotonic() < deadline:
    time.sleep(0.05)
print(all(now > then for now, then in zip(rounds(), before)), os.path.exists('/run/wrong'))",
            self.0
        ));
        assert_eq!(answer, "True False\n");
    }
}

/// Memory of the REPL's own, every page of it written.
#[derive(Debug)]
pub struct Data;

impl Data {
    pub fn start(agent: &mut Agent, mib: u32) -> Data {
        agent.python(&format!(
            "{START}
pages = {mib} << 8
data = mmap.mmap(-1, pages << 12)
numbers = [bytes(page >> shift & 255 for page in range(pages)) for shift in (0, 8, 16)]
for byte, number in enumerate(numbers): data[byte::4096] = number",
        ));
        Data
    }

    /// Rewrites some of it, so that a source and its copy differ from now on.
    pub fn change(&self, agent: &mut Agent, salt: u8) {
        agent.python(&format!(
            "numbers[2] = bytes(byte ^ {salt} for byte in numbers[2])\ndata[2::4096] = numbers[2]"
        ));
    }

    /// # Panics
    /// When a page is not as it was last written.
    pub fn assert_well(&self, agent: &mut Agent) {
        let answer = agent.python("print(all(data[b::4096] == number for b, number in enumerate(numbers)))");
        assert_eq!(answer, "True\n");
    }
}

/// Many processes, and one of many threads, all of which wait to be asked for their number.
#[derive(Debug)]
pub struct Crowd;

impl Crowd {
    const CODE: &str = r"
import gc, os, resource, socket, sys, threading
processes, threads = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
gc.disable()
pipes = []
for number in range(processes):
    (asked, ask), (answered, answer) = os.pipe(), os.pipe()
    if os.fork() == 0:
        own = number.to_bytes(4, 'little')
        while os.read(asked, 1):
            os.write(answer, own)
        os._exit(0)
    os.close(asked); os.close(answer)
    pipes.append((ask, answered))
threading.stack_size(64 << 10)
turn, answers, condition = 0, [], threading.Condition()
def wait(number):
    seen = 0
    while True:
        with condition:
            condition.wait_for(lambda: turn > seen)
            seen = turn
            answers.append(number)
            condition.notify_all()
for number in range(threads):
    threading.Thread(target=wait, args=(number,), daemon=True).start()
server = socket.socket(socket.AF_UNIX)
server.bind('/run/crowd')
server.listen()
while True:
    client, _ = server.accept()
    for ask, _ in pipes: os.write(ask, b'?')
    numbers = [int.from_bytes(os.read(answered, 4), 'little') for _, answered in pipes]
    with condition:
        answers.clear()
        turn += 1
        condition.notify_all()
        condition.wait_for(lambda: len(answers) == threads)
        each = numbers == list(range(processes)) and sorted(answers) == list(range(threads))
    client.send(str(each).encode())
    client.close()
";

    pub fn start(agent: &mut Agent) -> Crowd {
        agent.python(&format!(
            "{START}\n_ = start({:?}, '{PROCESSES}', '{THREADS}')
deadline = time.monotonic() + 110
while not os.path.exists('/run/crowd') and time.monotonic() < deadline: time.sleep(0.05)",
            Self::CODE
        ));
        Crowd.assert_well(agent);
        Crowd
    }

    /// # Panics
    /// When one of them does not answer, or not with its own number.
    pub fn assert_well(&self, agent: &mut Agent) {
        let answer = agent.python(
            "crowd = socket.socket(socket.AF_UNIX)\ncrowd.settimeout(110)\ncrowd.connect('/run/crowd')
print(crowd.recv(9).decode())",
        );
        assert_eq!(answer, "True\n");
    }
}

const WRITE_ATTEMPTS: u32 = 3;

/// Files that are in the guest's page cache and not on its disk yet.
#[derive(Debug)]
pub struct DirtyFiles;

impl DirtyFiles {
    /// From now on the guest's kernel writes nothing back unless it is asked to.
    pub fn start(agent: &mut Agent) -> DirtyFiles {
        agent.bash(
            "cd /proc/sys/vm; echo 80 > dirty_background_ratio; echo 90 > dirty_ratio
             echo 360000 > dirty_expire_centisecs; echo 0 > dirty_writeback_centisecs",
        );
        agent.python(&format!("{START}\nsums = {{}}"));
        DirtyFiles
    }

    /// Writes a file of that many MiB, and another if the kernel has written the first back all the same, as it may when
    /// the machine is slow.
    ///
    /// # Panics
    /// When most of it is not dirty.
    pub fn write(&self, agent: &mut Agent, mib: u32) {
        let is_dirty = (0..WRITE_ATTEMPTS).any(|_| self.try_write(agent, mib));
        assert!(
            is_dirty,
            "{WRITE_ATTEMPTS} files of {mib} MiB were on the disk as soon as they were written"
        );
    }

    fn try_write(&self, agent: &mut Agent, mib: u32) -> bool {
        let answer = agent.python(&format!(
            r"
name, part = f'/root/dirty-{{len(sums)}}', os.urandom(1 << 20)
content = b''.join(bytes([i]) + part[1:] for i in range({mib}))
with open(name, 'wb') as file: _ = file.write(content)
sums[name] = zlib.crc32(content)
dirty = next(int(line.split()[1]) for line in open('/proc/meminfo') if line.startswith('Dirty:'))
print(dirty > {mib} * 1024 * 3 // 4)"
        ));
        answer == "True\n"
    }

    /// Writes all back and reads it from the disk again.
    ///
    /// # Panics
    /// When it is not what was written.
    pub fn assert_well(&self, agent: &mut Agent) {
        agent.bash("sync; echo 3 > /proc/sys/vm/drop_caches");
        let answer =
            agent.python("print([n for n, s in sums.items() if zlib.crc32(open(n, 'rb').read()) != s])");
        assert_eq!(answer, "[]\n");
    }
}

/// Processes that append records to a file each, and wait for the disk after each record. A record has a number,
/// the machine's name and a checksum.
#[derive(Debug)]
pub struct Writers;

impl Writers {
    const CODE: &str = r"
import mmap, os, socket, struct, sys, zlib
number = sys.argv[1]
log = os.open(f'/root/log-{number}', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
with open(f'/run/written-{number}', 'w+b') as file:
    file.truncate(8)
    written = mmap.mmap(file.fileno(), 8)
count = 0
while True:
    record = struct.pack('<Q56s440x', count, socket.gethostname().encode())
    os.write(log, record + struct.pack('<Q', zlib.crc32(record)))
    os.fsync(log)
    count += 1
    written[:] = struct.pack('<Q', count)
";

    pub fn start(agent: &mut Agent) -> Writers {
        agent.python(&format!(
            r"{START}
def written():
    names = [f'/run/written-{{i}}' for i in range({WRITERS})]
    counts = [open(name, 'rb').read() if os.path.exists(name) else b'' for name in names]
    return [struct.unpack('<Q', count)[0] if len(count) == 8 else 0 for count in counts]
writers = [start({:?}, str(i)) for i in range({WRITERS})]",
            Self::CODE
        ));
        Writers.wait_for_more(agent);
        Writers
    }

    /// Waits until each has written some more records.
    ///
    /// # Panics
    /// When one stands still.
    pub fn wait_for_more(&self, agent: &mut Agent) {
        let answer = agent.python(
            r"
before, deadline = written(), time.monotonic() + 90
while any(now < then + 5 for now, then in zip(written(), before)) and time.monotonic() < deadline:
    time.sleep(0.05)
print(all(now >= then + 5 for now, then in zip(written(), before)))",
        );
        assert_eq!(answer, "True\n");
    }

    /// Ends them and reads the files from the disk: all records that a writer has waited for must be there, in
    /// order, each whole and written on this machine or, before it was copied, on one of `names`.
    ///
    /// # Panics
    /// When they are not.
    pub fn assert_well(&self, agent: &mut Agent, names: &[String]) {
        agent.python(
            "for writer in writers: os.kill(writer.pid, signal.SIGKILL)
while any(writer.poll() is None for writer in writers): time.sleep(0.01)",
        );
        agent.bash("sync; echo 3 > /proc/sys/vm/drop_caches");
        let answer = agent.python(&format!(
            r"
def fault(number, waited_for, names):
    log = open(f'/root/log-{{number}}', 'rb').read()
    if len(log) % 512 or len(log) // 512 < waited_for:
        return f'{{len(log)}} bytes, {{waited_for}} records'
    generation = 0
    for count in range(len(log) // 512):
        record, = struct.iter_unpack('<504sQ', log[count * 512:][:512])
        at, name = struct.unpack('<Q56s440x', record[0])
        name = name.rstrip(b'\0').decode()
        generation = max(generation, names.index(name) if name in names else -1)
        if zlib.crc32(record[0]) != record[1] or at != count or name != names[generation]:
            return f'record {{count}}: {{at}} {{name}}'
    return None
print([fault(number, count, {names:?}) for number, count in enumerate(written())])"
        ));
        assert_eq!(answer, format!("[{}]\n", vec!["None"; WRITERS as usize].join(", ")));
    }
}
