"""Arguments of almost the right type give what those of the right one give.

Settings give lists for tuples, and arithmetic on tensors gives tensors for lists. Each
snippet runs as a user's would, without the checks of the test run.
"""

from collections.abc import Callable

Run = Callable[[str], None]


def test_lists_tensors_and_numbers_give_what_tuples_and_flags_give(
    run_unchecked: Run,
) -> None:
    run_unchecked(
        """
        strides = schedule_from_strides(torch.tensor([1, 2, 2]))
        assert strides == schedule_from_strides([1, 2, 2])
        assert schedule_from_json(schedule_to_json(strides)) == strides
        pooled = pool_frames(torch.ones(2, 3, 3, 1), torch.tensor([1, 3]))
        assert pooled.cu_seqlens.tolist() == [0, 9, 10]
        grids = schedule_from_grids([[2, 2], [1, 1]])
        assert grids == schedule_from_grids([(2, 2), (1, 1)])
        assert kernel_schedule(5, [2, 3, 3]) == kernel_schedule(5, (2, 3, 3))
        flags = torch.tensor([True, False])
        slow = schedule_from_grids([(1, 2), (1, 1)], is_slow=flags)
        masked = keep_tokens(slow, [flags, None])
        assert masked.frames[0].keep == (True, False)
        assert schedule_from_json(schedule_to_json(masked)) == masked

        cells = plan_pooling([([4, 4], grids)]).cells
        assert torch.equal(cells, plan_pooling([((4, 4), grids)]).cells)
        assert torch.equal(cells, plan_pooling(zip([(4, 4)], [grids])).cells)
        layout = build_layout(
            [[VideoSpan(grid=[4, 4], schedule=grids)]], video_token_id=9
        )
        text = TextSpan(token_ids=tuple(torch.arange(3)))
        times = video_positions((1, 1), strides, times=torch.tensor([0, 2, 5]))
        assert times[0].tolist() == [0, 2, 5]
        targets = plan_next_frame(layout).targets
        assert sorted(targets.cells.tolist()) == list(range(16, 32))

        whole = schedule_from_grids([(2, 2), (2, 2), (2, 2)])
        flags = keep_tokens(whole, [None, [True, False, True, True], None])
        numbers = replace(
            flags,
            frames=[replace(f, keep=f.keep and (1, 0, 1, 1)) for f in flags.frames],
        )
        for given in (flags, numbers):
            clip = VideoSpan(grid=(4, 4), schedule=given)
            layout = build_layout([[clip]], video_token_id=9)
            assert layout.position_ids[3].tolist()[4:7] == [0, 0, 2]
            assert plan_pooling([((4, 4), given)]).cells[16:20].tolist() == [
                16, 17, 20, 21
            ]
            assert len(plan_next_frame(layout).targets.window_sizes) == 7

        lengths = torch.tensor([3, 6, 5, 2])
        assert best_fit_decreasing(lengths, 8) == ((1, 3), (0, 2))
        assert first_fit_decreasing(lengths, 8) == ((1, 3), (0, 2))
        assert fewest_bins_bound(lengths, 8) == 2
        assert take_bin(lengths, 8) == (0, 2)
        share = fill(lengths, best_fit_decreasing(lengths, 8), 8)
        assert share == 1 and type(share) is float
        assert StreamState(waiting=[1, 0]) == StreamState(waiting=(1, 0))
        start = StreamState()
        drawn = next_bin(lengths, 8, start, window=4, seed=0)
        assert drawn == next_bin(lengths.tolist(), 8, start, window=4, seed=0)
        costs = torch.tensor([2**30, 0], dtype=torch.int32)
        assert imbalance(costs) == imbalance_bound(costs, 2) == 2.0
        assert imbalance_bound(costs, 8) == 8.0

        one = torch.tensor(1)
        counted = FrameSchedule(
            num_frames=one,
            frames=[
                PooledFrame(
                    start=0 * one, stop=one, grid=(1, 2), is_slow=one,
                    keep=torch.tensor([1, 0]),
                )
            ],
        )
        assert schedule_from_json(schedule_to_json(counted)) == counted
        assert counted.frames[0].is_slow is True
        """
    )


def test_frames_of_lists_are_those_of_tuples(run_unchecked: Run) -> None:
    run_unchecked(
        """
        from fastslow.frames import FrameSchedule, PooledFrame

        of_lists, of_tuples = (
            FrameSchedule(
                num_frames=2,
                frames=kind([
                    PooledFrame(start=0, stop=1, stride=kind([1, 2])),
                    PooledFrame(
                        start=1, stop=2, grid=kind([1, 2]), keep=kind([True, False])
                    ),
                ]),
                scales=kind([1, 1]),
            )
            for kind in (list, tuple)
        )
        assert of_lists == of_tuples and hash(of_lists) == hash(of_tuples)
        """
    )


def test_spans_of_lists_are_those_of_tuples(run_unchecked: Run) -> None:
    run_unchecked(
        """
        schedule = repeat_strides(2, (1,))
        of_tuples = {
            TextSpan(token_ids=(3, 4)),
            VideoSpan(
                grid=(8, 8), schedule=schedule, times=(0, 2), between=((5, 6),)
            ),
        }
        of_lists = {
            TextSpan(token_ids=[3, 4]),
            VideoSpan(grid=[8, 8], schedule=schedule, times=[0, 2], between=[[5, 6]]),
        }
        of_tensors = {
            TextSpan(token_ids=torch.tensor([3, 4])),
            VideoSpan(
                grid=torch.tensor([8, 8]),
                schedule=schedule,
                times=torch.tensor([0, 2]),
                between=torch.tensor([[5, 6]]),
            ),
        }
        assert of_lists == of_tensors == of_tuples
        """
    )


def test_numbers_of_numpy_give_schedules_that_json_takes(run_unchecked: Run) -> None:
    run_unchecked(
        """
        one, two, eight = map(np.int64, (1, 2, 8))
        half, tenths = np.float32(0.5), np.float32(0.3)
        alike = {
            kernel_schedule(8, (2, 2, 2), is_slow=True): kernel_schedule(
                eight, np.array([2, 2, 2]), is_slow=np.bool_(True)
            ),
            scale_fast_frames(build_schedule(4), 2): scale_fast_frames(
                build_schedule(4), two
            ),
            build_schedule(8): build_schedule(eight, slow_ratio=half),
            build_schedule(10, slow_ratio=0.3): build_schedule(10, slow_ratio=tenths),
            build_schedule(3, slow_ratio=1): build_schedule(3, slow_ratio=one),
        }
        for schedule, same in alike.items():
            assert schedule == same
            assert schedule_to_json(schedule) == schedule_to_json(same)
        """
    )


def test_narrow_integers_of_numpy_do_not_wrap(run_unchecked: Run) -> None:
    run_unchecked(
        """
        for kind in (np.uint8, np.uint16, np.int16):
            lengths = np.array([3, 6, 5, 2, 4], kind)
            assert take_bin(lengths, 8) == take_bin(lengths.tolist(), 8)
            assert take_bin(lengths, 70_000) == (0, 1, 2, 3, 4)
            first, state = next_bin(lengths, 8, StreamState(), window=5, seed=0)
            plainly = next_bin(lengths.tolist(), 8, StreamState(), window=5, seed=0)
            assert (first, state) == plainly
            for capacity in (8, 70_000):
                for pack in (
                    best_fit_decreasing, first_fit_decreasing, fewest_bins_bound
                ):
                    assert pack(lengths, capacity) == pack(lengths.tolist(), capacity)
        for kind in (np.uint8, np.int8):
            costs = np.array([100] * 8 + [1], kind)
            assert balance(costs, 2) == balance(costs.tolist(), 2)
            assert deal_rounds(costs[:8], 2) == deal_rounds(costs[:8].tolist(), 2)
        runs = np.array([100_000, 7], np.int32)
        assert frame_causal_pairs(runs) == 100_000**2 + 7 * 100_007
        assert pooled_grid((4, 4), np.int64(2)) == (2, 2)
        """
    )


def test_sizes_that_a_compiler_knows_by_name_stay_symbols(run_unchecked: Run) -> None:
    run_unchecked(
        """
        from torch.fx.experimental.proxy_tensor import make_fx

        def merged(frames):
            height, width = merged_grid(frames.shape[1:])
            return torch.zeros(temporal_patches(frames.shape[0]), height, width)

        traced = make_fx(merged, tracing_mode="symbolic")(torch.zeros(8, 6, 4))
        assert traced(torch.zeros(12, 10, 8)).shape == (6, 5, 4)
        """
    )
