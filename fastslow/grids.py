"""Token-grid arithmetic: from raw frames to the number of tokens of each frame."""

from collections.abc import Sequence

from fastslow._typing import Grid


def temporal_patches(num_video_frames: int, *, temporal_patch_size: int = 2) -> int:
    """Count the frames that a vision tower makes of a clip's raw frames.

    Qwen2-VL merges ``temporal_patch_size`` raw frames into one and repeats the last
    raw frame when they do not divide evenly.

    Args:
        num_video_frames: Raw frames, at least 1.
        temporal_patch_size: Raw frames in one temporal patch, at least 1.

    Returns:
        ``ceil(num_video_frames / temporal_patch_size)``.

    Raises:
        ValueError: If an argument is below 1.

    Laws:
        ceil: the smallest count whose patches hold every raw frame

    Example:
        >>> temporal_patches(16), temporal_patches(7)
        (8, 4)
    """
    if num_video_frames < 1 or temporal_patch_size < 1:
        raise ValueError(
            f"num_video_frames is {num_video_frames} and temporal_patch_size is "
            f"{temporal_patch_size}; both must be at least 1"
        )
    return -(-num_video_frames // temporal_patch_size)


def merged_grid(patch_grid: Grid, *, merge_size: int = 2) -> Grid:
    """Give the token grid that remains after patches are merged in squares.

    Args:
        patch_grid: Height and width of a frame in patches.
        merge_size: Patches along each side of a merged token, at least 1.

    Returns:
        Height and width in merged tokens.

    Raises:
        ValueError: If a side is not a positive multiple of ``merge_size``.

    Laws:
        exact: every merged token holds merge_size ** 2 patches and none is left

    Example:
        >>> merged_grid((32, 46))
        (16, 23)
    """
    height, width = patch_grid
    if min(height, width, merge_size) < 1 or height % merge_size or width % merge_size:
        raise ValueError(
            f"patch_grid is {patch_grid}; both sides must be positive multiples of "
            f"merge_size {merge_size}"
        )
    return height // merge_size, width // merge_size


def merged_stride(patch_stride: int, *, merge_size: int = 2) -> int:
    """Turn a pooling stride in vision patches into one in merged tokens.

    Recipes count strides in patches, as LLaVA-NeXT does; Qwen2-VL pools a grid whose
    tokens already hold ``merge_size`` patches a side.

    Args:
        patch_stride: Stride in patches, a positive multiple of ``merge_size``.
        merge_size: Patches along each side of a merged token, at least 1.

    Returns:
        The stride in merged tokens.

    Raises:
        ValueError: If ``patch_stride`` is not a positive multiple of ``merge_size``.

    Laws:
        exact: the merged stride spans as many patches as the patch stride

    Example:
        >>> merged_stride(4), merged_stride(8)
        (2, 4)
    """
    if merge_size < 1 or patch_stride < 1 or patch_stride % merge_size:
        raise ValueError(
            f"patch_stride is {patch_stride}; it must be a positive multiple of "
            f"merge_size {merge_size}"
        )
    return patch_stride // merge_size


def pooled_grid(grid: Grid, stride: int) -> Grid:
    """Give the grid that pooling leaves, edge windows kept.

    Args:
        grid: Height and width in tokens, both at least 1.
        stride: Side of the square pooling window, in tokens, at least 1.

    Returns:
        ``(ceil(height / stride), ceil(width / stride))``.

    Raises:
        ValueError: If a side or the stride is below 1.

    Laws:
        covers: the windows cover the grid and the last one of a side is not empty
        identity: stride 1 changes nothing
        composes: strides a and b, one after the other, are stride a * b

    Example:
        >>> pooled_grid((13, 23), 4)
        (4, 6)
    """
    height, width = grid
    if min(height, width, stride) < 1:
        raise ValueError(
            f"grid is {grid} and stride is {stride}; all must be at least 1"
        )
    return -(-height // stride), -(-width // stride)


def tokens_per_frame(grid: Grid, strides: Sequence[int]) -> tuple[int, ...]:
    """Count the tokens that each frame of a clip keeps.

    Args:
        grid: Height and width of every frame before pooling, in tokens.
        strides: Pooling stride of each frame, in tokens.

    Returns:
        One count per frame, each at least 1.

    Raises:
        ValueError: If a side or a stride is below 1.

    Laws:
        matches_pooling: equals the lengths that ``pool_frames`` returns
        monotone: a larger stride never keeps more tokens

    Example:
        >>> tokens_per_frame((16, 16), (2, 4, 2, 4))
        (64, 16, 64, 16)
    """
    sizes = {stride: pooled_grid(grid, stride) for stride in set(strides)}
    return tuple(sizes[stride][0] * sizes[stride][1] for stride in strides)
