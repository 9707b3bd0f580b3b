"""Arguments of the wrong type are refused in a sentence, where nothing checks types.

Each snippet runs as a user's would, without the checks of the test run.
"""

from collections.abc import Callable

Run = Callable[[str], None]
Refuse = Callable[[dict[str, str]], None]


def test_half_a_cell_is_no_stride(run_refused: Refuse) -> None:
    whole = "it must be a whole number"
    run_refused(
        {
            "schedule_from_strides([1.5])": f"strides[0] is 1.5; {whole}, from 0 on",
            "build_schedule(2, slow_stride=2.0)": (
                f"strides[0] is 2.0; {whole}, from 0 on"
            ),
            "schedule_from_grids([(1.0, 1.0)])": f"grids[0][0] is 1.0; {whole}",
            "kernel_schedule(8, (2.5, 1, 1))": f"kernel[0] is 2.5; {whole}, from 0 on",
            "scale_fast_frames(build_schedule(2), 1.5)": f"scale is 1.5; {whole}",
        }
    )


def test_halves_are_not_counted(run_refused: Refuse) -> None:
    whole = "it must be a whole number"
    clip = "repeat_strides(2, (1,))"
    span = f"[VideoSpan(grid=(1, 1), schedule={clip})]"
    stream = "StreamState(), window={}, seed=0"
    run_refused(
        {
            "temporal_patches(7.2)": f"num_video_frames is 7.2; {whole}",
            "temporal_patches(7, temporal_patch_size=2.0)": (
                f"temporal_patch_size is 2.0; {whole}"
            ),
            "merged_grid((8.0, 8))": f"patch_grid[0] is 8.0; {whole}",
            "merged_grid((8, 8), merge_size=2.0)": f"merge_size is 2.0; {whole}",
            "merged_stride(4.0)": f"patch_stride is 4.0; {whole}",
            "merged_stride(4, merge_size=2.0)": f"merge_size is 2.0; {whole}",
            "pooled_grid((8.5, 8), 2)": f"grid[0] is 8.5; {whole}",
            "pooled_grid((8, 8), 2.5)": f"stride is 2.5; {whole}",
            "pooled_grid((8, 8), (2, 2.5))": f"stride[1] is 2.5; {whole}",
            "after_video((4.5, 4), 2)": f"grid[0] is 4.5; {whole}",
            "after_video((4, 4), 2.5)": f"num_frames is 2.5; {whole}",
            f"video_positions((1, 1), {clip}, start=0.5)": f"start is 0.5; {whole}",
            f"build_layout([{span}], video_token_id=9.7)": (
                f"video_token_id is 9.7; {whole}"
            ),
            f"build_layout([{span}], video_token_id='9')": (
                f"video_token_id is '9'; {whole}"
            ),
            f"build_layout([{span}], video_token_id=9, length=8.0)": (
                f"length is 8.0; {whole}"
            ),
            f"tokens_per_frame((8.0, 8), {clip})": f"grid[0] is 8.0; {whole}",
            "build_schedule(8.0)": f"num_frames is 8.0; {whole}",
            "kernel_schedule(8.0, (2, 2, 2))": f"num_frames is 8.0; {whole}",
            "take_bin([5], 8.5)": f"capacity is 8.5; {whole}",
            "best_fit_decreasing([5], 8.5)": f"capacity is 8.5; {whole}",
            "first_fit_decreasing([5], 8.5)": f"capacity is 8.5; {whole}",
            "fewest_bins_bound([5], 8.5)": f"capacity is 8.5; {whole}",
            "fill([5], [(0,)], 8.5)": f"capacity is 8.5; {whole}",
            f"next_bin([5], 8.5, {stream.format(2)})": f"capacity is 8.5; {whole}",
            f"next_bin([5], 8, {stream.format(2.5)})": f"window is 2.5; {whole}",
            "bucket_length(9.5, 64, buckets=4, multiple_of=8)": (
                f"tokens is 9.5; {whole}"
            ),
            "bucket_length(9, 64.0, buckets=4, multiple_of=8)": (
                f"capacity is 64.0; {whole}"
            ),
            "balance([1, 2], 2.0)": f"num_ranks is 2.0; {whole}",
            "cu_seqlens_from_lengths(torch.tensor([1.7, 2.6]))": (
                "lengths is torch.float32; it must hold integers"
            ),
        }
    )


def test_what_has_another_form_is_named(
    run_refused: Refuse, run_unchecked: Run
) -> None:
    run_refused(
        {
            "build_schedule(8, slow_ratio=torch.tensor(0.3))": (
                "slow_ratio is a Tensor; it must be a float or a Fraction between 0 "
                "and 1"
            ),
            "build_schedule(8, slow_ratio='0.3')": (
                "slow_ratio is a str; it must be a float or a Fraction between 0 and 1"
            ),
            "pooled_grid((8, 8), (2, 2, 2))": (
                "stride is (2, 2, 2); it must hold a height and a width"
            ),
            "pooled_grid((8, 8, 8), 2)": (
                "grid is (8, 8, 8); it must hold a height and a width"
            ),
            "merged_grid((1, 8, 8))": (
                "patch_grid is (1, 8, 8); it must hold a height and a width"
            ),
            "kernel_schedule(8, (2, 2))": "kernel is (2, 2); it must hold 3 numbers",
            "schedule_for_budget(8, (4, 4), 64, strides=(2.0, 4))": (
                "strides[0] is 2.0; it must be a whole number, from 0 on"
            ),
        }
    )
    run_unchecked(
        """
        clip = build_schedule(4, slow_stride=2, fast_stride=4)
        for kind in (list, np.array, torch.tensor):
            assert pooled_grid(kind([8, 6]), kind([2, 4])) == (4, 2)
            assert merged_grid(kind([8, 6])) == (4, 3)
            assert after_video(kind([8, 6]), 4) == 8
            counted = tokens_per_frame(kind([8, 6]), clip)
            assert counted == tokens_per_frame((8, 6), clip)
            chosen = schedule_for_budget(8, (4, 4), 64, strides=kind([2, 4]))
            assert chosen == schedule_for_budget(8, (4, 4), 64, strides=(2, 4))
            for one in (kind([2])[0],):
                assert pooled_grid((8, 6), one) == (4, 3)
                assert build_schedule(one) == build_schedule(2)
                assert temporal_patches(one) == 1
                assert merged_stride(one) == 1
                shifted = video_positions((1, 1), clip, start=one)
                assert shifted.min() == 2
                span = VideoSpan(grid=(4, 4), schedule=clip)
                row = build_layout([[span]], video_token_id=one)
                assert row.input_ids.unique().tolist() == [2]
        """
    )


def test_sequences_of_other_kinds_are_named(run_refused: Refuse) -> None:
    two, ids = "torch.float32 of shape (2,) on cpu", "torch.int64 of shape (2,) on cpu"
    agree = "they must agree in all but the first axis"
    ones, whole = "torch.ones(2)", "torch.arange(2)"
    run_refused(
        {
            f"pack_ragged([{whole}, {whole}, {ones}])": (
                f"sequences[2] is {two} but sequences[0] is {ids}; {agree}"
            ),
            "pack_ragged([torch.ones(0), torch.ones(2, 4)])": (
                "sequences[1] is torch.float32 of shape (2, 4) on cpu but sequences[0] "
                f"is torch.float32 of shape (0,) on cpu; {agree}"
            ),
            f"pack_ragged([{ones}, {ones}.to('meta')])": (
                "sequences[1] is torch.float32 of shape (2,) on meta but sequences[0] "
                f"is {two}; {agree}"
            ),
            f"pack_ragged({ones})": (
                "sequences is a Tensor; it must be a sequence of tensors"
            ),
            f"pack_ragged(each for each in [{ones}])": (
                "sequences is a generator; it must be a sequence of tensors"
            ),
            "pack_ragged([[1, 2], [3]])": "sequences[0] is a list; it must be a tensor",
            "pack_ragged([np.ones(2)])": (
                "sequences[0] is a ndarray; it must be a tensor"
            ),
            "pack_ragged([torch.tensor(1)])": (
                "sequences[0] has no axis; its first one counts items"
            ),
        }
    )


def test_what_torch_would_say_of_its_own_arguments_is_said_of_ours(
    run_refused: Refuse,
) -> None:
    query = "torch.ones(1, 2, 4, 8)"
    bounds = "visible_intervals(torch.arange(4))"
    on_meta = f"{query}.to('meta')"
    run_refused(
        {
            f"interval_attention({query}, {query}, {query}, torch.arange(4))": (
                "intervals is a Tensor; it must be KeyIntervals, as visible_intervals "
                "gives"
            ),
            f"interval_attention({on_meta}, {on_meta}, {on_meta}, {bounds})": (
                "intervals are on cpu but query is on meta; to_device moves them"
            ),
            f"interval_attention({query}, {query}, {query}, {bounds}, tile=2.0)": (
                "tile is 2.0; it must be a whole number"
            ),
            "pool_frames(torch.ones(1, 2, 2, 3).byte(), [2])": (
                "tokens is torch.uint8; it must hold floats"
            ),
            "pool_frames(torch.ones(1, 2, 2, 3) > 0, [2], mode='area')": (
                "tokens is torch.bool; it must hold floats"
            ),
        }
    )


def test_half_a_token_is_not_packed(run_unchecked: Run) -> None:
    run_unchecked(
        """
        halves = [3, 2.5]
        for pack in (best_fit_decreasing, fewest_bins_bound, take_bin):
            for lengths, item in ((halves, 1), (torch.tensor(halves), 0)):
                try:
                    pack(lengths, 4)
                except ValueError as error:
                    assert str(error) == (
                        f"item {item} has {lengths[item]} tokens; it must have a whole "
                        "number of them, between 1 and the capacity of 4"
                    )
                else:
                    raise AssertionError("half a token was cut off")
        """
    )


def test_a_target_too_few_is_named_where_rows_go_in_chunks(run_unchecked: Run) -> None:
    run_unchecked(
        """
        from fastslow import cross_entropy

        cross_entropy._CHUNK_BYTES = 40  # two rows
        plan = LabelPlan(rows=torch.tensor([0, 1, 2]), targets=torch.tensor([1, 2]))
        try:
            labelled_cross_entropy(torch.ones(4, 3), torch.ones(5, 3), plan)
        except ValueError as error:
            assert str(error) == (
                "plan has 3 rows but 2 targets; each labelled row has one"
            )
        else:
            raise AssertionError("a loss came out")
        """
    )


def test_slips_that_would_give_another_clip_are_named(run_refused: Refuse) -> None:
    clip = "grid=(1, 1), schedule=repeat_strides(2, (1,))"
    run_refused(
        {
            "two_level_schedule([0.1, 0.9])": "is_slow[0] is 0.1; it must be true or "
            "false",
            "keep_tokens(repeat_strides(1, (1,)), [[True, 0.2]])": "keep[0][1] is 0.2; "
            "it must be true or false",
            "TextSpan(token_ids=(9, 1.5))": "token_ids[1] is 1.5; it must be a whole "
            "number, from 0 on",
            "TextSpan(token_ids=(9, -1))": "token_ids[1] is -1; it must be a whole "
            "number, from 0 on",
            "TextSpan(token_ids=9)": "token_ids is 9; it must hold whole numbers, from "
            "0 on",
            "VideoSpan(grid=(4, 4), schedule=[2, 4])": (
                "schedule is a list; it must be a FrameSchedule, as "
                "schedule_from_strides makes"
            ),
            "build_layout([[1, 2, 3]], video_token_id=9)": (
                "span 0 of a sample is an int; it must be a TextSpan or a VideoSpan"
            ),
            f"build_layout([VideoSpan({clip})], video_token_id=9)": (
                "a sample is a VideoSpan; it must be a sequence of spans"
            ),
            f"count_tokens([VideoSpan({clip}), [9]])": (
                "span 1 of a sample is a list; it must be a TextSpan or a VideoSpan"
            ),
            "schedule_for_budget(8.0, (4, 4), 64)": (
                "num_frames is 8.0; it must be a whole number, from 0 on"
            ),
            "schedule_for_budget(8, (4, 4), 4e3)": (
                "budget is 4000.0; it must be a whole number, from 0 on"
            ),
            f"VideoSpan({clip}, times=(-1, 0))": (
                "times[0] is -1; it must be a whole number, from 0 on"
            ),
            f"VideoSpan({clip}, times=(0, 0.5))": (
                "times[1] is 0.5; it must be a whole number, from 0 on"
            ),
            f"VideoSpan({clip}, between=5)": (
                "between is an int; it must be a sequence of texts"
            ),
            f"VideoSpan({clip}, between=((0.5,),))": (
                "between[0][0] is 0.5; it must be a whole number, from 0 on"
            ),
            "video_positions((1, 1), repeat_strides(2, (1,)), times=[0.0, 0.5])": (
                "times[0] is 0.0; it must be a whole number, from 0 on"
            ),
            "tokens_per_frame((8, 2, 2), repeat_strides(1, (1,)))": (
                "grid is (8, 2, 2); it must hold a height and a width"
            ),
            "tokens_per_frame(16, repeat_strides(1, (1,)))": (
                "grid is 16; it must hold a height and a width"
            ),
            "plan_pooling([((8, 2, 2), repeat_strides(1, (1,)))])": (
                "grid is (8, 2, 2); it must hold a height and a width"
            ),
            "plan_pooling([VideoSpan(grid=(2, 2), schedule=build_schedule(1))])": (
                "clips[0] is VideoSpan(gri...), between=()); it must be a pair of a "
                "grid and its FrameSchedule"
            ),
            "plan_pooling(((2, 2), repeat_strides(1, (1,))))": (
                "clips[0] is (2, 2); it must be a pair of a grid and its FrameSchedule"
            ),
            "frame_causal_pairs([-1, 3])": "run_lengths[0] is -1; it must be a whole "
            "number, from 0 on",
        }
    )


def test_a_run_of_text_is_trained_as_a_whole(
    run_refused: Refuse, run_unchecked: Run
) -> None:
    hint = "it must be true or false, of all its tokens alike: one span for each run "
    run_refused(
        {
            "TextSpan(token_ids=[1, 2], trained=[False, False])": (
                f"trained is [False, False]; {hint}of them"
            ),
            "TextSpan(token_ids=[1, 2], trained=np.zeros(2, bool))": (
                f"trained is array([False, False]); {hint}of them"
            ),
            "TextSpan(token_ids=[1, 2], trained='no')": (
                f"trained is 'no'; {hint}of them"
            ),
            "TextSpan(token_ids=[1, 2], trained=None)": (
                f"trained is None; {hint}of them"
            ),
        }
    )
    run_unchecked(
        """
        for flag in (True, 1, np.True_, torch.tensor(True)):
            assert TextSpan(token_ids=[1], trained=flag).trained is True
        """
    )


def test_windows_count_whole_frames(run_refused: Refuse, run_unchecked: Run) -> None:
    visible = "visible_intervals(torch.arange(3), frame_ids=torch.arange(3), window={})"
    found = {window: window for window in ("2.0", "1.5", "True")}
    found["np.float64(2)"] = "2.0"
    run_refused(
        {
            visible.format(window): f"window is {shown}; it must be a whole number"
            for window, shown in found.items()
        }
        | {
            f"FrameWindow(frames={window})": (
                f"frames is {shown}; it must be a whole number"
            )
            for window, shown in found.items()
        }
        | {
            "FrameWindow(frames=1, keep_slow='no')": (
                "keep_slow is 'no'; it must be true or false"
            )
        }
    )
    run_unchecked(
        f"""
        for window in (np.int64(1), np.uint8(1), torch.tensor(1)):
            assert {visible.format("window")}.start.tolist() == [0, 1, 2]
            assert FrameWindow(frames=window) == FrameWindow(frames=1)
        """
    )


def test_flags_are_no_numbers_of_frames(
    run_refused: Refuse, run_unchecked: Run
) -> None:
    message = (
        "frames[0] is True; it must be the number of a frame, as in "
        "[t for t, is_slow in enumerate(flags) if is_slow]"
    )
    slow = "slow_by_top_k(torch.tensor([0.9, 0.1]), 1)"
    choose = "select_frames(repeat_strides(2, (1,)), {})"
    shapes = ("{}", "list({})", "np.array({})", "list(np.array({}))")
    shapes += ("torch.tensor({})", "list(torch.tensor({}))")
    flags = [choose.format(shape.format(slow)) for shape in shapes]
    run_refused(
        dict.fromkeys(flags, message)
        | {choose.format("[0.0]"): "frames[0] is 0.0; it must be a whole number"}
    )
    run_unchecked(
        """
        whole = repeat_strides(4, (1,))
        for frames in (np.array([2, 0]), torch.tensor([2, 0]), map(np.int64, (2, 0))):
            assert select_frames(whole, frames) == select_frames(whole, [2, 0])
        """
    )


def test_what_describes_a_row_has_its_axis_and_dtype(run_refused: Refuse) -> None:
    ranks = "torch.arange(3)"
    visible = f"visible_intervals({ranks}, "
    window = f"{visible}frame_ids={ranks}, window=1, is_kept="
    shape = "has shape (3, 1); it must be (tokens)"
    integers, floats = "it must hold integers", "torch.ones(3)"
    run_refused(
        {
            f"frame_causal_mask({ranks}, {ranks}[:, None])": f"segment_ids {shape}",
            f"frame_causal_mask({ranks}, {ranks}.bool())": (
                f"segment_ids is torch.bool; {integers}"
            ),
            f"frame_causal_mask({floats})": (
                f"causal_ranks is torch.float32; {integers}"
            ),
            f"frame_causal_block_mask({ranks}, {ranks}[:, None])": (
                f"segment_ids {shape}"
            ),
            f"{visible}{ranks}[:, None])": f"segment_ids {shape}",
            f"{visible}{floats})": f"segment_ids is torch.float32; {integers}",
            f"{visible}frame_ids={ranks}[:, None], window=1)": f"frame_ids {shape}",
            f"{visible}frame_ids={floats}, window=1)": (
                f"frame_ids is torch.float32; {integers}"
            ),
            f"{window}{ranks}[:, None] > 0)": f"is_kept {shape}",
            f"{window}{ranks})": "is_kept is torch.int64; it must hold booleans",
            f"{window}[True, False, False])": (
                "is_kept is a list; it must be a tensor (tokens)"
            ),
        }
    )


def test_numbers_of_schedules_are_whole_and_flags_are_flags(
    run_refused: Refuse, run_unchecked: Run
) -> None:
    whole = "it must be a whole number, from 0 on"
    frame = "PooledFrame(start=0, stop=1, {})"
    schedule = f"FrameSchedule(num_frames=1, frames=({frame.format('stride=(1, 1)')},)"
    run_refused(
        {
            frame.format("stride=(2.5, 2)"): f"stride[0] is 2.5; {whole}",
            frame.format("grid=(2, 2.0)"): f"grid[1] is 2.0; {whole}",
            frame.format("stride=2"): (
                "stride is 2; it must hold whole numbers, from 0 on"
            ),
            frame.format("grid=(1, 2), keep=(0.1, 0.2)"): (
                "keep[0] is 0.1; it must be true or false"
            ),
            frame.format("grid=(1, 2), is_slow=0.3"): (
                "is_slow is 0.3; it must be true or false"
            ),
            f"{schedule}, scales=(1.5,))": f"scales[0] is 1.5; {whole}",
        }
    )
    run_unchecked(
        """
        plain = FrameSchedule(
            num_frames=1,
            frames=[PooledFrame(start=0, stop=1, grid=(2, 1), keep=(True, False))],
            scales=(1,),
        )
        for kind in (np.array, torch.tensor):
            same = FrameSchedule(
                num_frames=kind(1),
                frames=[
                    PooledFrame(
                        start=kind(0), stop=kind(1), grid=kind([2, 1]),
                        keep=kind([True, False]),
                    )
                ],
                scales=kind([1]),
            )
            assert same == plain and hash(same) == hash(plain)
            assert schedule_to_json(same) == schedule_to_json(plain)
            stride = PooledFrame(start=0, stop=1, stride=kind([2, 1]))
            assert hash(stride) == hash(PooledFrame(start=0, stop=1, stride=(2, 1)))
        """
    )


def test_axes_are_named(run_refused: Refuse) -> None:
    square = "similarity has shape {}; it must be (frames, frames)"
    scores = "scores has shape {}; it must be ({})"
    row = "causal_ranks has shape (1, 4); it must be (tokens)"
    ranks = "torch.zeros(1, 4, dtype=torch.long)"
    run_refused(
        {
            "pool_frames(torch.ones(2, 9, 1), [1, 3])": (
                "tokens has shape (2, 9, 1); it must be (frames, height, width, dim)"
            ),
            "pool_tokens(torch.ones(4), plan_pooling([((2, 2), "
            "repeat_strides(1, (1,)))]))": (
                "tokens has shape (4,); it must be (cells, dim)"
            ),
            "pool_frames(torch.ones(2, 3, 3, 1), 2)": (
                "strides is 2; it must hold one stride per frame"
            ),
            "change_weights(torch.ones(3, 4), torch.ones(1, 4))": (
                "copies has shape (3, 4) but targets has (1, 4); each token has both"
            ),
            "slow_by_similarity(torch.ones(5), 0.5)": square.format("(5,)"),
            "slow_by_similarity(torch.ones(5, 3), 0.5)": square.format("(5, 3)"),
            "slow_by_score(torch.ones(1, 5), 0.5)": scores.format("(1, 5)", "frames"),
            "slow_by_top_k([0.1, 0.5], 2)": (
                "scores is a list; it must be a tensor (frames)"
            ),
            "next_frame_loss(torch.ones(3, 4), torch.ones(3, 4))": (
                "targets is a Tensor; it must be a Ragged, as pool_tokens gives"
            ),
            "change_weights(torch.ones(3, 4), pack_ragged([torch.ones(3, 4)]))": (
                "targets is a Ragged; it must be a tensor (tokens, dim)"
            ),
            "labelled_cross_entropy(torch.ones(1, 4, 3), torch.ones(5, 3), "
            f"LabelPlan(rows={ranks}, targets={ranks}))": (
                "hidden has shape (1, 4, 3); it must be (tokens, hidden)"
            ),
            "labelled_cross_entropy(torch.ones(4, 3), torch.ones(3), "
            f"LabelPlan(rows={ranks}, targets={ranks}))": (
                "weight has shape (3,); it must be (vocabulary, hidden)"
            ),
            "interval_attention(torch.ones(2, 4, 8), torch.ones(2, 4, 8), "
            "torch.ones(2, 4, 8), visible_intervals(torch.arange(4)))": (
                "query has shape (2, 4, 8); it must be (batch, heads, tokens, dim)"
            ),
            "effective_rank(torch.ones(2, 3, 4))": (
                "features has shape (2, 3, 4); it must be (tokens, dim)"
            ),
            "direction_spread(torch.ones(4))": (
                "features has shape (4,); it must be (tokens, dim)"
            ),
            "next_frame_loss(torch.ones(1, 3, 4), Ragged(values=torch.ones(1, 3, 4), "
            "cu_seqlens=torch.tensor([0, 3]).int()))": (
                "predictions has shape (1, 3, 4); it must be (tokens, dim)"
            ),
            "slow_by_top_k(torch.ones(1, 5), 2)": scores.format("(1, 5)", "frames"),
            "keep_by_score(torch.ones(5), 0.5)": scores.format(
                "(5,)", "frames, tokens"
            ),
            f"frame_causal_mask({ranks})": row,
            f"visible_intervals({ranks})": row,
            f"frame_causal_block_mask({ranks})": row,
        }
    )


def test_dtypes_that_autocast_leaves_apart_are_named_as_they_were_given(
    run_unchecked: Run,
) -> None:
    run_unchecked(
        """
        hidden, weight = torch.zeros(3, 2).double(), torch.ones(4, 2)
        plan = LabelPlan(rows=torch.tensor([1]), targets=torch.tensor([0]))
        with torch.autocast("cpu"):
            try:
                labelled_cross_entropy(hidden, weight, plan)
            except ValueError as error:
                said = str(error)
        assert said == (
            "hidden is torch.float64 but weight is torch.float32; both must have one "
            "dtype, or ones that autocast narrows to one"
        )
        """
    )


def test_what_a_model_cannot_take_is_refused(run_unchecked: Run) -> None:
    run_unchecked(
        """
        from functools import partial

        from peft import LoraConfig, LoraModel
        from fastslow.qwen2_vl import *
        from recipes.edge.weights.tiny import tiny_config
        from transformers import Qwen2VLForConditionalGeneration

        def refused(call, *given):
            try:
                call(*given)
            except ValueError as error:
                return str(error)

        frames = torch.zeros(2, 3, 56, 56)
        assert refused(patchify_clip, frames, VisionGeometry()) == (
            "frames is torch.float32 of shape (2, 3, 56, 56); it must be uint8 "
            "(frames, 3, height, width)"
        )
        backbone = Qwen2VLForConditionalGeneration(tiny_config(64))
        adapted = LoraModel(backbone, LoraConfig(target_modules=["q_proj"]), "one")
        assert refused(patchify_clip, frames.numpy(), VisionGeometry()) == (
            "frames is a ndarray; it must be a uint8 tensor (frames, 3, height, width)"
        )
        assert refused(FastSlowQwen2VL, adapted) == (
            "backbone is a LoraModel; it must be transformers' own Qwen2-VL, "
            "Qwen2.5-VL or Qwen3-VL, into which adapters are put once it is wrapped"
        )
        backbone = Qwen2VLForConditionalGeneration(tiny_config(64))
        model = FastSlowQwen2VL(backbone)
        clip, patches = blank_clip(model.family.geometry)
        plan = plan_row([[clip]], video_token_id=6, family=model.family)
        assert refused(FastSlowQwen2VL, model) == (
            "backbone is a FastSlowQwen2VL; it must be transformers' own Qwen2-VL, "
            "Qwen2.5-VL or Qwen3-VL, into which adapters are put once it is wrapped"
        )
        assert refused(model, patches, plan.layout) == (
            "plan is a TokenLayout; it must be a RowPlan, as plan_row gives"
        )
        for ends, found in ((1.5, "eos_token_id is 1.5; it must hold whole numbers"), (
            [None], "eos_token_id[0] is None; it must be a whole number"
        )):
            answer = partial(generate_answers, eos_token_id=ends, max_new_tokens=1)
            assert refused(answer, model, patches, plan) == f"{found}, from 0 on"
        shape = tuple(patches.shape)
        assert refused(model, patches.long(), plan) == (
            f"patches is torch.int64 of shape {shape}; the plan is for {shape}, bytes "
            "as patchify_clip gives them or floats as normalize_patches does"
        )
        """
    )


def test_a_plan_that_was_cast_on_its_way_is_refused(run_unchecked: Run) -> None:
    """FSDP2 casts the floats of dataclasses as well, if it is not told not to."""
    run_unchecked(
        """
        import torch.distributed as dist
        from fastslow.qwen2_vl import *
        from recipes.edge.weights.tiny import tiny_config
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
        from torch.testing._internal.distributed.fake_pg import FakeStore
        from transformers import Qwen2VLForConditionalGeneration

        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
        mesh = init_device_mesh("cpu", (1,))
        for casts in (True, False):
            model = FastSlowQwen2VL(Qwen2VLForConditionalGeneration(tiny_config(64)))
            clip, patches = blank_clip(model.family.geometry)
            plan = plan_row([[clip]], video_token_id=6, family=model.family)
            policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, cast_forward_inputs=casts
            )
            model.freeze_tower()
            fully_shard(model, mesh=mesh, mp_policy=policy)
            try:
                model(patches, plan)
            except ValueError as error:
                assert casts and str(error) == (
                    "plan.weights is torch.bfloat16, too narrow for shares of a "
                    "window; FSDP2 casts plans as well, unless its "
                    "MixedPrecisionPolicy is given cast_forward_inputs=False"
                )
            else:
                assert not casts
        dist.destroy_process_group()
        """
    )
