//! Every bound of the two internal protocols, in one place.

/// The longest control message between hostd and a VMM, in bytes.
pub const CONTROL_MESSAGE_LEN_MAX: usize = 64 * 1024;

/// The most runs of hot pages; with each at most 13 bytes long they fit into one control message.
pub const HOT_PAGE_RUNS_MAX: usize = 4096;

/// The longest guest kernel command line, in bytes (Linux itself stops at 2,048).
pub const COMMAND_LINE_LEN_MAX: usize = 2048;

/// vCPUs of one microVM.
pub const VCPUS_MAX: u8 = 32;

/// Memory of one microVM, in MiB: the least that boots a distribution kernel, and the most offered.
pub const MEMORY_MIB_MIN: u32 = 128;
pub const MEMORY_MIB_MAX: u32 = 65_536;

/// Disk of one microVM, in GiB.
pub const DISK_GIB_MAX: u32 = 512;

/// The end of the guest's console that a VMM keeps, in bytes.
pub const CONSOLE_TAIL_LEN_MAX: usize = 16 * 1024;

/// The longest source text of one execution, in bytes. The published SDK uploads files inside it, as base64.
pub const CODE_LEN_MAX: usize = 32 * 1024 * 1024;

/// Bytes of the code's beginning that are told to those who look at what runs.
pub const CODE_EXCERPT_LEN_MAX: usize = 256;

/// Variables that one execution may add to its environment, and their names and values together, in bytes. Linux
/// itself takes no variable of more than 128 KiB.
pub const ENV_ENTRIES_MAX: usize = 256;
pub const ENV_LEN_MAX: usize = 64 * 1024;

/// The longest directory name that Linux takes, in bytes.
pub const CWD_LEN_MAX: usize = 4095;

/// The longest standard input of one execution, in bytes.
pub const STDIN_LEN_MAX: usize = 16 * 1024 * 1024;

/// The longest time limit of one execution: no sandbox is offered a longer life.
pub const EXEC_TIMEOUT_MS_MAX: u64 = 24 * 60 * 60 * 1000;

/// The longest frame from hostd to the agent: one execution and its envelope.
pub const REQUEST_FRAME_LEN_MAX: usize =
    CODE_LEN_MAX + STDIN_LEN_MAX + 2 * ENV_LEN_MAX + CWD_LEN_MAX + 64 * 1024;

/// The most output bytes in one frame from the agent.
pub const OUTPUT_CHUNK_LEN_MAX: usize = 64 * 1024;

/// The longest frame from the agent to hostd: one chunk of output and its envelope.
pub const EVENT_FRAME_LEN_MAX: usize = OUTPUT_CHUNK_LEN_MAX + 4 * 1024;

/// Output bytes that an execution may have on the way before hostd grants more. A reader that stops
/// reading stops its own execution and no other.
pub const OUTPUT_WINDOW_LEN: u32 = 1024 * 1024;

/// Executions that wait or run at once in one guest.
pub const EXECS_MAX: usize = 64;

/// Terminals of one guest, those whose programs have ended included.
pub const TERMINALS_MAX: usize = 32;

/// Streams to the terminals of one guest: attachments and operations under way.
pub const TERMINAL_CONNECTIONS_MAX: usize = 64;

/// Output that is kept of each terminal, in bytes.
pub const TERMINAL_RING_LEN: usize = 1024 * 1024;

/// The most bytes of output in one answer to a read.
pub const TERMINAL_READ_LEN_MAX: u32 = 256 * 1024;

/// The most bytes that are typed at once.
pub const TERMINAL_INPUT_LEN_MAX: usize = 32 * 1024;

/// Columns or rows of a terminal.
pub const TERMINAL_SIDE_MAX: u16 = 1000;

/// Arguments of a terminal's program, and their bytes together.
pub const TERMINAL_ARGUMENTS_MAX: usize = 256;
pub const TERMINAL_COMMAND_LEN_MAX: usize = 64 * 1024;

/// The longest frame from hostd about a terminal: its program and what surrounds that.
pub const TERMINAL_REQUEST_LEN_MAX: usize =
    TERMINAL_COMMAND_LEN_MAX + 2 * ENV_LEN_MAX + CWD_LEN_MAX + 8 * 1024;

/// The longest frame from the agent about a terminal: one answer to a read.
pub const TERMINAL_EVENT_LEN_MAX: usize = TERMINAL_READ_LEN_MAX as usize + 1024;
