/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.simulations

import dev.tideline.core.Outcome
import dev.tideline.core.Reason
import dev.tideline.core.Span
import dev.tideline.core.into
import dev.tideline.core.requireThat
import kotlin.math.ln
import kotlin.math.roundToLong

/** Identifies a run of a simulation, and starts its dice. */
@JvmInline
value class Seed(val raw: Long) {
    override fun toString(): String = raw.toString()
}

/** Rolls numbers that look random but are the same for the same seed. */
class Dice(seed: Seed) {
    private var state = seed.raw xor SCRAMBLE

    /** Rolls a fraction from zero up to, but not including, one. */
    fun rollFraction(): Double {
        state = state * FACTOR + STEP
        return (state ushr 11).toDouble() / (1L shl 53)
    }

    /** Rolls a whole number of the range. */
    fun rollIn(range: IntRange): Int =
        range.first + (rollFraction() * (range.last - range.first + 1)).toInt()

    /** Tells whether something of the given chance has come to pass. */
    fun rollChance(chance: Double): Boolean = rollFraction() < chance

    /** Rolls the time until the next of many independent arrivals. */
    fun rollGap(mean: Span): Span = Span((-ln(1.0 - rollFraction()) * mean.minutes).roundToLong())

    /** Picks one of the items, or refuses when there are none. */
    fun <T> pick(items: List<T>): Outcome<T> =
        requireThat(items.isNotEmpty(), Reason.INVALID) { "there is nothing to pick from" }
            .into { items[rollIn(items.indices)] }

    private companion object {
        const val SCRAMBLE = 0x5DEECE66DL
        const val FACTOR = 6364136223846793005L
        const val STEP = 1442695040888963407L
    }
}
