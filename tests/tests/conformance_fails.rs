//! The conformance suite notices each fault, by the check that states the promise it breaks, and by no other.

use std::collections::BTreeSet;
use std::sync::Arc;
use udrv_backend::AnyBackend;
use udrv_backend::conformance::{Outcome, Subject, checks};
use udrv_tests::broken::{Broken, Fault};
use udrv_tests::vectors::{KNOWLEDGE, vectors};

fn failures(fault: Fault) -> BTreeSet<&'static str> {
    let kept: AnyBackend = Arc::new(vectors().expect("a model"));
    let open = || -> udrv_backend::Result<AnyBackend> {
        Ok(match fault {
            Fault::DropDoesNothing => Arc::clone(&kept),
            fault => Arc::new(Broken::new(Arc::new(vectors()?), fault)),
        })
    };
    let subject = Subject { open: &open, knowledge: KNOWLEDGE };
    // A device that is never closed is only asked what it promises of closing.
    let wanted = |name: &str| fault != Fault::DropDoesNothing || name.starts_with("drop_");
    let checks = checks().into_iter().filter(|check| wanted(check.name));
    let failed = checks.filter(|check| matches!(check.run(&subject), Outcome::Failed(_)));
    failed.map(|check| check.name).collect()
}

/// Each fault with the check that states the promise it breaks, and then those that cannot but notice it too.
const FAULTS: &[(Fault, &[&str])] = &[
    (Fault::None, &[]),
    (Fault::AddressIsEmpty, &["device_info_is_sane"]),
    (Fault::EmptyRegionIsReadable, &["region_info_of_every_index_is_consistent"]),
    (Fault::RegionBeyondTheLastExists, &["region_beyond_the_last_is_refused"]),
    (Fault::IrqInfoNamesAnother, &["irq_info_of_every_index_is_consistent"]),
    (Fault::LastRegisterIsOutOfBounds, &["read_inside_its_region_succeeds"]),
    (Fault::ReadBoundIsOffByOne, &["read_beyond_its_region_is_refused"]),
    (Fault::Panics, &["read_beyond_its_region_is_refused"]),
    (Fault::WriteOffsetIsCutTo32Bits, &["write_beyond_its_region_is_refused"]),
    (Fault::UnalignedReadIsDone, &["unaligned_access_is_refused"]),
    (Fault::UnalignedWriteIsDone, &["unaligned_access_is_refused"]),
    (Fault::WideValueIsTruncated, &["value_wider_than_its_access_is_refused"]),
    (Fault::HalfWordsAreSwapped, &["config_space_identifies_the_device"]),
    (Fault::UpperHalfIsDropped, &["scratch_register_keeps_what_was_written"]),
    (Fault::MappableAreaIsTooLong, &["mappable_areas_lie_in_their_region"]),
    (Fault::RegionFileIsTheWrongPart, &["region_file_holds_the_region"]),
    (Fault::VectorBeyondTheLastFires, &["irq_beyond_the_last_is_refused"]),
    (
        Fault::FireSignalsTwice,
        &[
            "fired_vector_is_signalled",
            "disabled_irq_is_silent_until_armed_again",
            "empty_range_changes_nothing",
            "every_vector_signals_its_own_trigger",
            "fire_neither_heeds_nor_changes_the_mask",
            "fired_socket_is_signalled",
            "hole_is_silent_and_its_neighbours_are_not",
            "many_signals_merge_and_none_is_lost",
            "range_past_the_last_vector_is_refused_whole",
            "reset_keeps_triggers_armed",
            "vectors_armed_in_any_order_are_signalled",
            "vectors_outside_a_range_keep_their_trigger",
        ],
    ),
    (
        Fault::SocketIsNoTrigger,
        &[
            "fired_socket_is_signalled",
            "descriptor_is_kept_by_the_backend",
            "drop_closes_every_trigger",
            "full_descriptor_is_not_waited_for",
            "many_signals_merge_and_none_is_lost",
        ],
    ),
    (Fault::UnarmedFireIsLatched, &["unarmed_vector_fires_without_error", "disabled_irq_is_silent_until_armed_again"]),
    (Fault::DescriptorIsBorrowed, &["descriptor_is_kept_by_the_backend", "drop_closes_every_trigger"]),
    (Fault::SixthFireCountsTwice, &["many_signals_merge_and_none_is_lost"]),
    (Fault::QueueIsBounded, &["full_descriptor_is_not_waited_for"]),
    (Fault::ReplacedTriggerIsSignalledToo, &["replaced_trigger_is_silent"]),
    (Fault::TriggerTakenAwayIsKeptOpen, &["trigger_taken_away_is_silent"]),
    (Fault::DisabledTriggerIsSignalled, &["disabled_irq_is_silent_until_armed_again"]),
    (Fault::SeveralKindsAreArmed, &["armed_index_excludes_the_others"]),
    (Fault::MessagesCanBeMasked, &["masking_what_cannot_be_masked_is_refused"]),
    (Fault::MaskOutlivesItsTrigger, &["unarmed_vector_has_no_mask"]),
    (Fault::RangePastTheEndIsCut, &["range_past_the_last_vector_is_refused_whole"]),
    (Fault::RangeSumOverflows, &["range_past_the_last_vector_is_refused_whole", "irq_beyond_the_last_is_refused"]),
    (Fault::EmptyRangeDisarms, &["empty_range_changes_nothing"]),
    (
        Fault::TriggersAreArmedInReverse,
        &[
            "every_vector_signals_its_own_trigger",
            "hole_is_silent_and_its_neighbours_are_not",
            "messages_merge_and_none_is_lost",
            "raised_message_signals_its_vector",
            "reset_keeps_triggers_armed",
            "vectors_armed_in_any_order_are_signalled",
            "vectors_outside_a_range_keep_their_trigger",
        ],
    ),
    (
        Fault::ArmingForgetsHigherVectors,
        &["vectors_armed_in_any_order_are_signalled", "hole_is_silent_and_its_neighbours_are_not"],
    ),
    (
        Fault::ArmingForgetsLowerVectors,
        &["vectors_outside_a_range_keep_their_trigger", "vectors_armed_in_any_order_are_signalled"],
    ),
    (Fault::HolesAreClosedUp, &["hole_is_silent_and_its_neighbours_are_not", "reset_keeps_triggers_armed"]),
    (
        Fault::MessagesComeFromTheNextVector,
        &["raised_message_signals_its_vector", "messages_merge_and_none_is_lost", "reset_keeps_triggers_armed"],
    ),
    (Fault::EleventhMessageIsLost, &["messages_merge_and_none_is_lost"]),
    (Fault::LineIsNotAutomasked, &["asserted_line_is_signalled_once"]),
    (Fault::LineAssertedBeforeArmingIsLost, &["line_asserted_before_arming_is_signalled"]),
    (
        Fault::UnmaskDoesNotLookAtTheLine,
        &[
            "line_still_asserted_is_signalled_again_on_unmask",
            "fire_neither_heeds_nor_changes_the_mask",
            "masked_line_is_kept_back_until_unmask",
        ],
    ),
    (
        Fault::UnmaskSignalsAQuietLine,
        &["line_acknowledged_is_quiet_on_unmask", "fire_neither_heeds_nor_changes_the_mask"],
    ),
    (Fault::MaskIsIgnored, &["masked_line_is_kept_back_until_unmask", "fire_neither_heeds_nor_changes_the_mask"]),
    (Fault::FireMasksTheLine, &["fire_neither_heeds_nor_changes_the_mask", "reset_keeps_triggers_armed"]),
    (Fault::NoMappingIsPossible, &["dma_limits_are_sane"]),
    (
        Fault::ReadOnlyMappingIsRefused,
        &["dma_range_can_be_mapped_again_after_unmap", "dma_access_is_limited_to_what_was_given"],
    ),
    (Fault::EnclosingMappingIsAccepted, &["dma_overlap_is_refused"]),
    (
        Fault::DoubleMappingIsAccepted,
        &["dma_overlap_is_refused", "dma_many_mappings_can_exist_at_once", "reset_keeps_memory_mapped"],
    ),
    (Fault::LongUnmapIsAccepted, &["dma_unmap_of_another_range_is_refused"]),
    (Fault::OverflowingMappingIsAccepted, &["dma_malformed_range_is_refused"]),
    (Fault::MappingOutOfReachIsAccepted, &["dma_range_out_of_reach_is_refused"]),
    (Fault::LastPageIsRefused, &["dma_first_and_last_page_can_be_mapped"]),
    (Fault::ShortFileIsRefusedTooLate, &["dma_file_shorter_than_its_mapping_does_no_harm"]),
    (Fault::MappingsAreFew, &["dma_many_mappings_can_exist_at_once"]),
    (Fault::FileOffsetIsIgnored, &["dma_reaches_mapped_memory", "dma_access_is_limited_to_what_was_given"]),
    (Fault::UnmapIsForgotten, &["dma_does_not_reach_unmapped_memory"]),
    (Fault::AccessIsIgnored, &["dma_access_is_limited_to_what_was_given"]),
    (Fault::ResetKeepsARegister, &["reset_gives_registers_their_reset_value"]),
    (Fault::ResetDisarmsMessages, &["reset_keeps_triggers_armed"]),
    (Fault::ResetLeavesTheLineMasked, &["reset_leaves_the_line_unmasked", "reset_keeps_triggers_armed"]),
    (Fault::ResetUnmaps, &["reset_keeps_memory_mapped"]),
    (Fault::OnlyOneThreadIsServed, &["concurrent_calls_do_not_disturb_each_other"]),
    (Fault::DropLeavesTriggersOpen, &["drop_closes_every_trigger"]),
    (
        Fault::DropDoesNothing,
        &["drop_closes_every_trigger", "drop_unmaps_memory", "drop_with_everything_live_leaves_the_device_usable"],
    ),
];

#[test]
fn each_fault_is_noticed_by_the_check_of_its_promise_and_by_no_other() {
    let judge = |(fault, expected): &(Fault, &[&'static str])| {
        let (found, expected) = (failures(*fault), expected.iter().copied().collect::<BTreeSet<_>>());
        (found != expected).then(|| format!("{fault:?}\n  found    {found:?}\n  expected {expected:?}"))
    };
    // All at once: most of the time is spent waiting for signals that do not come.
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = FAULTS.iter().map(|row| scope.spawn(move || judge(row))).collect();
        threads.into_iter().filter_map(|thread| thread.join().expect("a panic is an outcome")).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_check_notices_some_fault() {
    let noticed: BTreeSet<_> = FAULTS.iter().flat_map(|(_, checks)| checks.iter().copied()).collect();
    let all: BTreeSet<_> = checks().iter().map(|check| check.name).collect();
    assert_eq!(noticed, all);
}
