//! Everything together, in any order.

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Keep(u8, u64, u64),
    Load(u8, u64, u64),
    Learn(u8),
    Touch(u8),
    Hold(u8),
    Drop(u8),
    Forget(u8),
    Evict(u8, u32),
    Damage(u8, u64, bool),
    Restart(bool),
    Clear,
    Verify,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (object, place) = (0_u8..5, any::<u64>());
    let step = prop_oneof![
        8 => (object.clone(), place, 1_u64..60).prop_map(|(o, p, l)| Step::Keep(o, p, l)),
        8 => (object.clone(), place, 1_u64..900_000).prop_map(|(o, p, l)| Step::Load(o, p, l)),
        1 => object.clone().prop_map(Step::Learn),
        1 => object.clone().prop_map(Step::Touch),
        1 => object.clone().prop_map(Step::Hold),
        1 => object.clone().prop_map(Step::Drop),
        1 => object.clone().prop_map(Step::Forget),
        1 => (object.clone(), any::<u32>()).prop_map(|(o, e)| Step::Evict(o, e)),
        2 => (object, place, any::<bool>()).prop_map(|(o, p, i)| Step::Damage(o, p, i)),
        2 => any::<bool>().prop_map(Step::Restart),
        1 => Just(Step::Clear),
        1 => Just(Step::Verify),
    ];
    prop::collection::vec(step, 1..60)
}

/// Sizes of the objects of the model.
const MODEL: [u64; 5] = [9, 70_000, SMALL + 3, 2 * BLOCK - 5, 64 * BLOCK + 30_000];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// Whatever is done in whatever order: what is served is right, what is there is counted, and the limit is kept.
    #[test]
    fn every_byte_is_right(steps in steps(), limit in (1_u64 << 20)..(8 << 20)) {
        let dir = tempfile::tempdir().unwrap();
        let contents: Vec<Arc<[u8]>> = MODEL.iter().zip(0..).map(|(size, number)| content(id(number), *size)).collect();
        let mut cache = open_with(dir.path(), limit);
        cache.scan();
        let mut held: HashMap<u8, Arc<Entry>> = HashMap::new();
        let size = |object: u8| MODEL[usize::from(object)];
        for step in steps {
            match step {
                Step::Keep(o, place, granules) => {
                    let start = place % size(o) / GRANULE * GRANULE;
                    let end = (start + granules * GRANULE).min(size(o));
                    let one = entry(&cache, id(o), size(o));
                    let corrupt = cache.0.metrics.corrupt.get();
                    let piece = &contents[usize::from(o)][usize::try_from(start).unwrap()..usize::try_from(end).unwrap()];
                    match one.keep(start, piece).unwrap() {
                        Kept::NoRoom => {}
                        Kept::Completed(whole) => prop_assert!(one.complete() && whole != Whole::Wrong),
                        // What was there before may turn out to be damaged when a block is complete.
                        Kept::Stored | Kept::Already => {
                            prop_assert!(one.has(&(start..end)) || cache.0.metrics.corrupt.get() > corrupt);
                        }
                    }
                }
                Step::Load(o, place, len) => {
                    let start = place % size(o);
                    let len = usize::try_from(len.min(size(o) - start)).unwrap();
                    let one = entry(&cache, id(o), size(o));
                    let mut buffer = vec![0; len];
                    let right = &contents[usize::from(o)][usize::try_from(start).unwrap()..][..len];
                    if one.read_proved(start, &mut buffer) {
                        // Damage after proof is the disk's to find; the steps damage only what is looked at anew.
                        prop_assert!(buffer == right);
                    }
                    if one.load(start, &mut buffer) == Loaded::Filled {
                        prop_assert!(buffer == right);
                    }
                }
                Step::Learn(o) => {
                    let checksum = Checksum::Crc64(crc64(&contents[usize::from(o)]));
                    let one = entry(&cache, id(o), size(o));
                    one.learn(Some(checksum));
                    prop_assert_ne!(one.whole(), Whole::Wrong);
                }
                Step::Touch(o) => entry(&cache, id(o), size(o)).touch(),
                Step::Hold(o) => drop(held.insert(o, entry(&cache, id(o), size(o)))),
                Step::Drop(o) => drop(held.remove(&o)),
                Step::Forget(o) => entry(&cache, id(o), size(o)).forget(),
                Step::Evict(o, extent) => {
                    let one = entry(&cache, id(o), size(o));
                    let unit = one.unit(extent % one.extents());
                    if cache.0.space.has(&unit) {
                        evict(&cache, unit, size(o));
                        prop_assert!(!one.has(&(u64::from(unit.extent) * EXTENT..u64::from(unit.extent) * EXTENT + 1)));
                    }
                }
                Step::Damage(o, place, in_index) => {
                    held.clear();
                    drop(std::mem::replace(&mut cache, open_with(dir.path(), limit)));
                    let small = size(o) <= SMALL;
                    let part = if small { Part::Small } else if in_index { Part::Index } else { Part::Data };
                    let file = path(&cache, id(o), part);
                    if let Ok(meta) = fs::metadata(&file) && meta.len() > 0 {
                        // An index that does not begin as ours do is somebody else's, and stays.
                        let from = if part == Part::Index { 8 } else { 0 };
                        flip(&file, from + place % (meta.len() - from));
                    }
                    cache.scan();
                }
                Step::Restart(scan_late) => {
                    held.clear();
                    cache = open_with(dir.path(), limit);
                    let early = entry(&cache, id(3), size(3));
                    if scan_late {
                        early.has(&(0..size(3)));
                    }
                    cache.scan();
                }
                Step::Clear => {
                    let stayed = cache.clear().stayed_objects;
                    prop_assert!(stayed <= u64::try_from(held.len()).unwrap());
                }
                Step::Verify => drop(cache.verify()),
            }
            prop_assert!(cache.used() <= limit, "{} > {}", cache.used(), limit);
        }
        held.clear();
        let (counted, taken) = (cache.used(), on_disk(dir.path()));
        // Extents that were put out leave their part of the index, and the last granule of a small object its page.
        prop_assert!(counted.abs_diff(taken) <= 24 * PAGE, "{} counted, {} on the disk", counted, taken);
    }
}
