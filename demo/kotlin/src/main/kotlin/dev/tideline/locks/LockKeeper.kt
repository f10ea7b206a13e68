/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.locks

import dev.tideline.core.Events
import dev.tideline.core.Metres
import dev.tideline.core.Moment
import dev.tideline.core.Outcome
import dev.tideline.core.Reason
import dev.tideline.core.Span
import dev.tideline.core.TideClock
import dev.tideline.core.TideEvent
import dev.tideline.core.Window
import dev.tideline.core.into
import dev.tideline.core.ledger
import dev.tideline.core.onDone
import dev.tideline.core.requireThat
import dev.tideline.core.then
import dev.tideline.ships.Ship
import dev.tideline.ships.ShipId

/** Identifies a lock between the tidal and the inner basin. */
@JvmInline
value class LockId(val raw: String) {
    override fun toString(): String = raw
}

/** Names the side of the lock on which ships wait. */
enum class LockSide { SEAWARD, LANDWARD }

/** Describes the chamber of a lock. */
data class Lock(val id: LockId, val length: Metres, val turnaround: Span)

/** Lists the ships that go through the lock together. */
data class Locking(
    val lock: LockId,
    val side: LockSide,
    val ships: List<ShipId>,
    val window: Window,
)

/** Tells that the gates were closed behind some ships. */
data class ChamberFilled(
    val lock: LockId,
    val ships: List<ShipId>,
    override val at: Moment,
) : TideEvent

/** Fills the chamber of one lock, from the side on which it is needed. */
class LockKeeper(
    private val lock: Lock,
    private val events: Events,
    private val clock: TideClock,
    private val gap: Metres = Metres(5.0),
) {
    private val log = ledger<LockKeeper>()
    private val queues = LockSide.entries.associateWith { mutableListOf<Ship>() }
    private var gateAt = LockSide.SEAWARD

    /** Lets a ship join the queue on one side, or refuses when it could never fit. */
    fun join(ship: Ship, side: LockSide): Outcome<Int> =
        requireThat(ship.length + gap <= lock.length, Reason.INVALID) { "${ship.name} is too long" }
            .then {
                requireThat(queues.values.none { ship in it }, Reason.DUPLICATE) {
                    "${ship.name} already waits"
                }
            }
            .into {
                queues.getValue(side) += ship
                queues.getValue(side).size
            }
            .onDone { log.note("lock.joined", "ship" to ship.id, "side" to side, "place" to it) }

    /** Closes the gates on the ships that fit, and turns the chamber first when it has to. */
    fun lockThrough(): Outcome<Locking> =
        requireThat(queues.values.any { it.isNotEmpty() }, Reason.NOT_FOUND) { "nobody waits at ${lock.id}" }
            .into {
                val turned = queues.getValue(gateAt).isEmpty()
                val side = if (turned) opposite(gateAt) else gateAt
                val start = if (turned) clock.now() + lock.turnaround else clock.now()
                val ships = takeFitting(queues.getValue(side))
                gateAt = opposite(side)
                Locking(
                    lock = lock.id,
                    side = side,
                    ships = ships.map { it.id },
                    window = Window(start, start + lock.turnaround),
                )
            }
            .onDone {
                log.note("lock.filled", "lock" to lock.id, "ships" to it.ships.size, "side" to it.side)
                events.publish(ChamberFilled(lock = lock.id, ships = it.ships, at = it.window.from))
            }

    /** Counts the ships that wait on one side. */
    fun countWaiting(side: LockSide): Int = queues.getValue(side).size

    private fun takeFitting(queue: MutableList<Ship>): List<Ship> {
        var room = lock.length
        val fitting = queue.filter { ship ->
            val fits = ship.length + gap <= room
            if (fits) room -= ship.length + gap
            fits
        }
        queue.removeAll(fitting)
        return fitting
    }

    private fun opposite(side: LockSide): LockSide =
        if (side == LockSide.SEAWARD) LockSide.LANDWARD else LockSide.SEAWARD
}
