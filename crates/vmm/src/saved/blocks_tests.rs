//! Blocks in files, against plain copies of their content.

use super::*;
use proptest::prelude::*;

/// A block's content: all of one byte. `None` is what no file says anything of.
type Model = Vec<Option<u8>>;

const BLOCKS: usize = 700;

fn content(byte: u8) -> [u8; BLOCK_LEN] {
    [byte; BLOCK_LEN]
}

fn number(block: usize) -> u64 {
    u64::try_from(block).unwrap()
}

fn reader(file: &File, part: Part) -> BlocksReader {
    BlocksReader::open(file.try_clone().unwrap(), part).unwrap()
}

fn save(part: Part, model: &[Option<u8>], base: Option<&File>) -> File {
    let file = tempfile::tempfile().unwrap();
    let base = base.map(|base| reader(base, part));
    let mut writer = BlocksWriter::new(file.try_clone().unwrap(), part, number(model.len()), base);
    for (block, byte) in model.iter().enumerate() {
        match byte {
            Some(0) => writer.put_zeros(number(block)).unwrap(),
            Some(byte) => writer.put(number(block), &content(*byte)).unwrap(),
            None => {}
        }
    }
    writer.finish().unwrap();
    file
}

/// Puts what is in a file over a model.
fn lay(file: &File, part: Part, model: &mut Model) {
    let reader = reader(file, part);
    for (run, data) in reader.runs() {
        for (index, block) in run.range().enumerate() {
            let mut bytes = content(0);
            if run.kind == Kind::Data {
                reader.read(data + number(index), &mut bytes).unwrap();
            }
            assert!(bytes.iter().all(|&byte| byte == bytes[0]));
            model[usize::try_from(block).unwrap()] = Some(bytes[0]);
        }
    }
}

fn zeros() -> Model {
    vec![Some(0); BLOCKS]
}

/// Stretches of few bytes: what is the same in two models is then frequent.
fn any_model() -> impl Strategy<Value = Model> {
    let stretch = (0..4_u8, prop_oneof![1..4_usize, 1..300_usize]);
    prop::collection::vec(stretch, 1..40).prop_map(|stretches| {
        let mut model: Model = stretches
            .into_iter()
            .flat_map(|(byte, count)| std::iter::repeat_n(Some(byte), count))
            .take(BLOCKS)
            .collect();
        model.resize(BLOCKS, Some(0));
        model
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_saved_whole_comes_back(model in any_model()) {
        let mut read = zeros();
        lay(&save(Part::Memory, &model, None), Part::Memory, &mut read);
        prop_assert_eq!(read, model);
    }

    #[test]
    fn changes_over_their_base_are_the_whole(base in any_model(), model in any_model()) {
        for part in [Part::Memory, Part::Disk] {
            let base_file = save(part, &base, None);
            let changes = save(part, &model, Some(&base_file));
            let mut read = base.clone();
            lay(&changes, part, &mut read);
            prop_assert_eq!(&read, &model);

            let differ = base.iter().zip(&model).filter(|(base, model)| base != model).count();
            let told: u64 = reader(&changes, part).runs().map(|(run, _)| run.count).sum();
            prop_assert_eq!(told, number(differ));
        }
    }

    #[test]
    fn a_base_knows_which_blocks_it_has(
        base in prop::collection::vec(prop::option::of(0..3_u8), 1..100),
    ) {
        let file = save(Part::Disk, &base, None);
        let mut writer = BlocksWriter::new(
            tempfile::tempfile().unwrap(), Part::Disk, 200, Some(reader(&file, Part::Disk)),
        );
        for block in 0..200 {
            prop_assert_eq!(writer.base_has(number(block)), base.get(block).is_some_and(Option::is_some));
        }
    }

    #[test]
    fn runs_that_are_opened_are_in_order_and_have_their_data(
        end in prop_oneof![0..40_u64, any::<u64>()],
        runs in prop::collection::vec((any_number(), any_number(), any::<bool>()), 0..6),
        blocks in 0..12_u8,
    ) {
        let runs: Vec<Run> = runs
            .into_iter()
            .map(|(first, count, data)| Run { first, count, kind: if data { Kind::Data } else { Kind::Zeros } })
            .collect();
        let Ok(reader) = forge(end, runs, blocks) else { return Ok(()) };
        let mut before = 0;
        for (run, data) in reader.runs() {
            prop_assert!(run.count > 0 && run.first >= before && run.range().end <= end);
            before = run.range().end;
            if run.kind == Kind::Data {
                let mut bytes = vec![0; usize::try_from(run.count).unwrap() * BLOCK_LEN];
                reader.read(data, &mut bytes).unwrap();
            }
        }
    }
}

fn any_number() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..12_u64, 1 => any::<u64>()]
}

/// A file whose checksums are right, and whose index says this.
fn forge(end: u64, runs: Vec<Run>, blocks: u8) -> Result<BlocksReader, SavedError> {
    let file = tempfile::tempfile().unwrap();
    let mut writer = PartWriter::new(file.try_clone().unwrap(), Part::Memory);
    for byte in 0..blocks {
        writer.push(&content(byte)).unwrap();
    }
    writer.finish(&Index { end, runs }).unwrap();
    BlocksReader::open(file, Part::Memory)
}

#[test]
fn runs_that_cannot_be_are_refused() {
    let data = |first, count| Run { first, count, kind: Kind::Data };
    let zeros = |first, count| Run { first, count, kind: Kind::Zeros };
    let opens = |end, runs: &[Run], blocks| forge(end, runs.to_vec(), blocks).is_ok();
    assert!(opens(9, &[data(0, 2), zeros(2, 3), data(8, 1)], 3));
    assert!(!opens(8, &[data(0, 2), zeros(2, 3), data(8, 1)], 3), "out of bounds");
    assert!(!opens(9, &[data(2, 2), data(3, 1)], 3), "one over the other");
    assert!(!opens(9, &[data(5, 1), data(2, 1)], 2), "out of order");
    assert!(!opens(9, &[zeros(4, 0)], 0), "an empty one");
    assert!(!opens(9, &[data(0, 2)], 1), "less data than runs");
    assert!(!opens(9, &[data(0, 2)], 3), "more data than runs");
    assert!(!opens(u64::MAX, &[data(u64::MAX, 2)], 2), "beyond all numbers");
    assert!(!opens(u64::MAX, &[data(0, u64::MAX / 2), data(u64::MAX / 2, u64::MAX / 2)], 1));
}

#[test]
fn blocks_of_one_kind_that_follow_each_other_are_one_run() {
    let mut model = vec![None; 9];
    model[1..4].fill(Some(5));
    model[4..6].fill(Some(0));
    model[8] = Some(6);
    let file = save(Part::Disk, &model, None);
    let reader = reader(&file, Part::Disk);
    let runs: Vec<_> = reader.runs().map(|(run, data)| (run.range(), run.kind, data)).collect();
    assert_eq!(runs, [(1..4, Kind::Data, 0), (4..6, Kind::Zeros, 3), (8..9, Kind::Data, 3)]);
    assert_eq!(reader.end(), 9);
}

#[test]
fn zeros_are_told_only_where_there_would_be_something_else() {
    let zeros = vec![Some(0); 4];
    let runs = |part, base| reader(&save(part, &zeros, base), part).runs().count();
    assert_eq!(runs(Part::Memory, None), 0);
    // Without a file the base image is behind a disk.
    assert_eq!(runs(Part::Disk, None), 1);
    let has_zeros = save(Part::Disk, &zeros, None);
    assert_eq!(runs(Part::Disk, Some(&has_zeros)), 0);
    let has_data = save(Part::Memory, &[Some(1), Some(0), Some(1), Some(0)], None);
    assert_eq!(runs(Part::Memory, Some(&has_data)), 2);
}

#[test]
fn nothing_is_compared_with_a_damaged_base() {
    let model = vec![Some(3); 600];
    let base = save(Part::Memory, &model, None);
    let offset = BlocksReader::offset_of(400) + 17;
    std::os::unix::fs::FileExt::write_all_at(&base, &[9], offset).unwrap();
    let file = tempfile::tempfile().unwrap();
    let mut writer = BlocksWriter::new(file, Part::Memory, 600, Some(reader(&base, Part::Memory)));
    writer.put(0, &content(3)).unwrap();
    let put = writer.put(300, &content(3));
    assert!(matches!(put, Err(SavedError::Chunk { chunk: 1, .. })));
}
