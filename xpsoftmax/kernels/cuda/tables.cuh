// Several arrays in one launch: a kernel's argument is a table with an item for each array. Every item gets as many thread
// blocks as its array needs. The blocks of an item follow those of the item before.
//
// Why: a launch takes 1.5 to 2.5 microseconds of a GPU, which is more than the work on a small array.
#pragma once
#include "numbers.cuh"

// All arguments of a kernel together have at most 4 KiB.
constexpr int MOST_ITEMS = 32;

// The member `end` of an `Item` is the number of the first thread block behind its own.
template <class Item>
struct Table {
    Item items[MOST_ITEMS];
};

// The item that a thread block works on, and the number of the block among those of the item.
struct Share {
    int item;
    Long block;

    template <class Item>
    DEVICE Share(const Table<Item>& table) : item(0), block(blockIdx.x) {
        while ((Long)blockIdx.x >= table.items[item].end) ++item;
        if (item > 0) block -= table.items[item - 1].end;
    }
};
